// safetensors: what is accepted, what is refused and with which result and sentence, the limits on
// memory and time, all bit patterns of the short number types, and writing that never harms the
// file that was there. Files live in memory mostly, where every call can be made to fail.
#define _POSIX_C_SOURCE 200809L
#define CLNET_IMPLEMENTATION
#include "clnet.h"
#include "test.h"
#include "test_disk.h"

#include <sys/stat.h>
#include <unistd.h>

// >>hostile: headers and what becomes of them

static const char PATH[] = "hostile.safetensors";

// The length, the header, and `data` bytes behind it that count up from 0. Returns the file's size.
static size_t put_file(const void *header, size_t length, size_t data) {
    size_t size = 8 + length + data;
    unsigned char *bytes = malloc(size);
    clnet__store_bytes(bytes, 8, length);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data; i++) {
        bytes[8 + length + i] = (unsigned char)i;
    }
    disk_put(PATH, bytes, size);
    free(bytes);
    return size;
}

// Opens PATH, which has to be refused with this result and a sentence that names the file and has
// `text` in it, within the bound on memory, leaving nothing behind.
static void check_refused(const char *what, clnet_result expected, const char *text) {
    clnet_context *ctx = disk_context();
    size_t before = memory.now;
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    const char *error = clnet_error(ctx);
    CHECK(f == NULL && clnet_context_result(ctx) == expected, "%s: result %d, expected %d: %s",
          what, (int)clnet_context_result(ctx), (int)expected, error);
    CHECK(strstr(error, PATH) == error && strstr(error, text) != NULL,
          "%s: \"%s\" should name %s and say \"%s\"", what, error, PATH, text);
    CHECK((double)memory_peak() <= 2.0 * (double)disk_find(PATH)->size + 1048576,
          "%s: %zu bytes of memory for a file of %llu", what, memory_peak(),
          (unsigned long long)disk_find(PATH)->size);
    clnet_tensor_file_close(f);
    CHECK(memory.now == before && disk.open == 0, "%s: something is left", what);
    clnet_context_destroy(ctx);
}

#define FIELDS(dtype, shape, offsets)                                                              \
    "\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets
#define TENSOR(name, dtype, shape, offsets)                                                        \
    "\"" name "\":{" FIELDS("\"" dtype "\"", shape, offsets) "}"
#define ONE(dtype, shape, offsets) "{" TENSOR("a.weight", dtype, shape, offsets) "}"

static const struct {
    const char *header;
    size_t data;
    clnet_result result;
    const char *text;
} refused[] = {
    // JSON
    {"", 0, CLNET_ERROR_SYNTAX,
     "byte 8: expected a header that begins with '{', found the header's"},
    {" {}", 0, CLNET_ERROR_SYNTAX,
     "byte 8: expected a header that begins with '{', found byte 0x20"},
    {"[]", 0, CLNET_ERROR_SYNTAX, "begins with '{', found '['"},
    {"{", 0, CLNET_ERROR_SYNTAX, "byte 9: expected a name as a string, found the header's end"},
    {"{}x", 0, CLNET_ERROR_SYNTAX,
     "byte 10: expected nothing but spaces behind the JSON, found 'x'"},
    {"{}\n", 0, CLNET_ERROR_SYNTAX, "found byte 0x0a"},
    {"{}{}", 0, CLNET_ERROR_SYNTAX, "found '{'"},
    {"{,}", 0, CLNET_ERROR_SYNTAX, "byte 9: expected a name as a string, found ','"},
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") ",}", 1, CLNET_ERROR_SYNTAX, "a name as a string"},
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") TENSOR("b", "U8", "[0]", "[1,1]") "}", 1,
     CLNET_ERROR_SYNTAX, "expected ',' or '}', found '\"'"},
    {"{1:{}}", 0, CLNET_ERROR_SYNTAX, "a name as a string, found '1'"},
    {"{\"a\" {}}", 0, CLNET_ERROR_SYNTAX, "byte 13: expected ':', found '{'"},
    {"{\"a\":1}", 0, CLNET_ERROR_SYNTAX, "tensor a: expected a tensor as an object, found '1'"},
    {"{\"a\":[]}", 0, CLNET_ERROR_SYNTAX, "tensor a: expected a tensor as an object, found '['"},
    {"{\"a\":{1}}", 0, CLNET_ERROR_SYNTAX, "tensor a: expected a field's name as a string"},
    {"{\"a\":{}}", 0, CLNET_ERROR_SYNTAX, "tensor a: expected a field \"dtype\", found none"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, CLNET_ERROR_SYNTAX,
     "\"shape\", found"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, CLNET_ERROR_SYNTAX,
     "\"data_offsets\", found none"},
    {"{\"a\":{\"type\":\"U8\",\"shape\":[0]}}", 0, CLNET_ERROR_SYNTAX,
     "tensor a: expected dtype, shape"},
    {"{\"a\":{" FIELDS("\"U8\"", "[0]", "[0,0]") ",\"x\":[[[[]]]]}}", 0, CLNET_ERROR_SYNTAX,
     "found \"x\""},
    {"{\"a", 0, CLNET_ERROR_SYNTAX, "byte 11: expected more of a string, or its '\"', found the"},
    {"{\"a\tb\":{}}", 0, CLNET_ERROR_SYNTAX, "byte 11: expected more of a string"},
    {"{\"a\\x\":{}}", 0, CLNET_ERROR_SYNTAX, "after a backslash, found 'x'"},
    {"{\"a\\u12g4\":{}}", 0, CLNET_ERROR_SYNTAX, "byte 15: expected four hexadecimal digits"},
    {"{\"a\\u12", 0, CLNET_ERROR_SYNTAX, "four hexadecimal digits"},
    {"{\"a\\", 0, CLNET_ERROR_SYNTAX, "after a backslash, found the header's end"},
    // text
    {"{\"\xff\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8, found byte 0xff"},
    {"{\"\x80\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8, found byte 0x80"},
    {"{\"\xc0\xaf\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"},         // overlong
    {"{\"\xe0\x80\xaf\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"},     // overlong
    {"{\"\xf0\x80\x80\xaf\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"}, // overlong
    {"{\"\xed\xa0\x80\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"},     // surrogate
    {"{\"\xf4\x90\x80\x80\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"}, // > U+10FFFF
    {"{\"\xe2\x82\":1}", 0, CLNET_ERROR_ENCODING, "byte 10: expected UTF-8"},         // cut
    {"{} \xe2", 0, CLNET_ERROR_ENCODING, "byte 11: expected UTF-8"}, // cut by the end
    {"{\"\\ud800\":1}", 0, CLNET_ERROR_ENCODING, "expected the low half of a surrogate pair"},
    {"{\"\\ud800\\n\":1}", 0, CLNET_ERROR_ENCODING, "expected the low half of a surrogate pair"},
    {"{\"\\ud800\\u0041\":1}", 0, CLNET_ERROR_ENCODING, "a low surrogate before this place"},
    {"{\"\\ud800\\ue000\":1}", 0, CLNET_ERROR_ENCODING, "a low surrogate before this place"},
    {"{\"\\ud800\\udc0x\":1}", 0, CLNET_ERROR_SYNTAX, "four hexadecimal digits"},
    {"{\"\\udc00\":1}", 0, CLNET_ERROR_ENCODING, "no lone low surrogate"},
    {"{\"a\\u0000b\":1}", 0, CLNET_ERROR_ENCODING, "byte 17: expected no \\u0000"},
    {"{\"a\\nb\":1}", 0, CLNET_ERROR_ENCODING,
     "byte 10: expected a name without control characters"},
    {"{\"\\u009b\":1}", 0, CLNET_ERROR_ENCODING, "a name without control characters, found \"??\""},
    {"{\"\x7f\":1}", 0, CLNET_ERROR_ENCODING, "a name without control characters"},
    // duplicates
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("a", "U8", "[1]", "[0,1]") "}", 1,
     CLNET_ERROR_DUPLICATE, "tensor a: the name stands in the file twice"},
    {"{" TENSOR("ab", "U8", "[1]", "[0,1]") "," TENSOR("x", "U8", "[1]", "[1,2]") "," TENSOR(
         "a\\u0062", "U8", "[1]", "[2,3]") "}",
     3, CLNET_ERROR_DUPLICATE, "tensor ab: the name stands in the file twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0, CLNET_ERROR_DUPLICATE,
     "tensor a: expected dtype, shape and data_offsets, found another \"dtype\""},
    {"{\"__metadata__\":{},\"__metadat\\u0061__\":{}}", 0, CLNET_ERROR_DUPLICATE, "only once"},
    {"{\"__metadata__\":{\"k\":\"1\",\"j\":\"2\",\"\\u006b\":\"3\"}}", 0, CLNET_ERROR_DUPLICATE,
     "the key \"k\" stands in the metadata twice"},
    // metadata
    {"{\"__metadata__\":null}", 0, CLNET_ERROR_METADATA,
     "\"__metadata__\" as an object, found 'n'"},
    {"{\"__metadata__\":{\"k\":1}}", 0, CLNET_ERROR_METADATA, "metadata as a string, found '1'"},
    {"{\"__metadata__\":{\"k\":{}}}", 0, CLNET_ERROR_METADATA, "metadata as a string, found '{'"},
    {"{\"__metadata__\":{\"k\":null}}", 0, CLNET_ERROR_METADATA, "metadata as a string, found 'n'"},
    {"{\"__metadata__\":{1:\"k\"}}", 0, CLNET_ERROR_SYNTAX, "a key as a string"},
    {"{\"__metadata__\":{\"k\":\"1\"", 0, CLNET_ERROR_SYNTAX, "',' or '}', found the header's end"},
    {"{\"__metadata__\":{\"k\":\"\\u0000\"}}", 0, CLNET_ERROR_ENCODING, "no \\u0000"},
    // dtypes
    {ONE("F31", "[1]", "[0,4]"), 4, CLNET_ERROR_DTYPE, "tensor a.weight: expected a dtype such as"},
    {ONE("f32", "[1]", "[0,4]"), 4, CLNET_ERROR_DTYPE, "found \"f32\""},
    {ONE("", "[1]", "[0,4]"), 4, CLNET_ERROR_DTYPE, "found \"\""},
    {ONE("\\n01234567890123456789012345678901234567890123456789", "[1]", "[0,1]"), 1,
     CLNET_ERROR_DTYPE, "found \"?01234567890123456789012345678901234567\""},
    {ONE("F4", "[2]", "[0,1]"), 1, CLNET_ERROR_DTYPE, "found \"F4\""},
    {"{\"a\":{\"dtype\":4}}", 0, CLNET_ERROR_DTYPE, "tensor a: expected a dtype as a string"},
    // shapes
    {ONE("U8", "1", "[0,1]"), 1, CLNET_ERROR_SHAPE,
     "tensor a.weight: expected a shape as an array"},
    {ONE("U8", "[-1]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "whole numbers below 2^48, found '-'"},
    {ONE("U8", "[-0]", "[0,0]"), 0, CLNET_ERROR_SHAPE, "found '-'"},
    {ONE("U8", "[+1]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '+'"},
    {ONE("U8", "[1.0]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '.'"},
    {ONE("U8", "[1e2]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found 'e'"},
    {ONE("U8", "[1E2]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found 'E'"},
    {ONE("U8", "[00]", "[0,0]"), 0, CLNET_ERROR_SHAPE, "found '0'"},
    {ONE("U8", "[01]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '1'"},
    {ONE("U8", "[\\\"1\\\"]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '\\'"},
    {ONE("U8", "[\"1\"]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '\"'"},
    {ONE("U8", "[null]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found 'n'"},
    {ONE("U8", "[[1]]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found '['"},
    {ONE("U8", "[1,]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found ']'"},
    {ONE("U8", "[,1]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "found ','"},
    {ONE("U8", "[1 1]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "expected ',' or ']', found '1'"},
    {ONE("U8", "[281474976710656]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "below 2^48, found '6'"},
    {ONE("U8", "[2,18446744073709551614]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "below 2^48"},
    {ONE("U8", "[2,9223372036854775807]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "below 2^48"},
    {ONE("U8", "[4194305,4194305,211106198978564]", "[0,1]"), 1, CLNET_ERROR_SHAPE,
     "tensor a.weight: its shape has more bytes than 64 bits count"},
    {ONE("F32", "[281474976710655,16385]", "[0,1]"), 1, CLNET_ERROR_SHAPE, "64 bits"}, // by x 4
    {ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, CLNET_ERROR_LIMIT,
     "tensor a.weight: expected the"},
    // offsets
    {ONE("U8", "[1]", "1"), 1, CLNET_ERROR_OFFSETS, "tensor a.weight: expected data_offsets as an"},
    {ONE("U8", "[1]", "[]"), 1, CLNET_ERROR_OFFSETS, "two whole numbers below 2^48, found ']'"},
    {ONE("U8", "[1]", "[0]"), 1, CLNET_ERROR_OFFSETS, "',' in data_offsets, found ']'"},
    {ONE("U8", "[1]", "[0,1,1]"), 1, CLNET_ERROR_OFFSETS, "']' after two data_offsets, found ','"},
    {ONE("U8", "[1]", "[-0,1]"), 1, CLNET_ERROR_OFFSETS, "found '-'"},
    {ONE("U8", "[1]", "[0,1.0]"), 1, CLNET_ERROR_OFFSETS, "found '.'"},
    {ONE("U8", "[1]", "[0,01]"), 1, CLNET_ERROR_OFFSETS, "found '1'"},
    {ONE("U8", "[1]", "[0,18446744073709551616]"), 1, CLNET_ERROR_OFFSETS, "below 2^48"},
    {ONE("U8", "[1]", "[1,0]"), 1, CLNET_ERROR_OFFSETS, "begins behind its end: at 1, expected 0"},
    {ONE("F32", "[2]", "[0,7]"), 7, CLNET_ERROR_OFFSETS,
     "bytes between its offsets: 7, expected 8"},
    {ONE("F32", "[]", "[0,8]"), 8, CLNET_ERROR_OFFSETS, "bytes between its offsets: 8, expected 4"},
    {ONE("U8", "[0]", "[0,1]"), 1, CLNET_ERROR_OFFSETS, "bytes between its offsets: 1, expected 0"},
    {ONE("U8", "[1]", "[1,2]"), 2, CLNET_ERROR_OFFSETS, "a gap before it: begins at 1, expected 0"},
    {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("b", "U8", "[1]", "[2,3]") "}", 3,
     CLNET_ERROR_OFFSETS, "tensor b: a gap before it: begins at 2, expected 1"},
    {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[1,3]") "}", 3,
     CLNET_ERROR_OFFSETS, "tensor b: overlaps another one: begins at 1, expected 2"},
    {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[0,2]") "}", 2,
     CLNET_ERROR_OFFSETS, "overlaps another one: begins at 0, expected 2"},
    {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[0]", "[1,1]") "}", 2,
     CLNET_ERROR_OFFSETS, "tensor b: overlaps another one"},
    {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[0]", "[3,3]") "}", 3,
     CLNET_ERROR_OFFSETS, "tensor b: a gap before it: begins at 3, expected 2"},
    {ONE("U8", "[1]", "[0,1]"), 3, CLNET_ERROR_OFFSETS, "expected the file's end behind the last"},
    {"{}", 1, CLNET_ERROR_OFFSETS,
     "byte 10: expected the file's end behind the last tensor, found 1"},
    {ONE("U8", "[4]", "[0,4]"), 3, CLNET_ERROR_TRUNCATED,
     "tensor a.weight: the file ends before it: bytes of data: 3, expected 4"},
    {ONE("U8", "[281474976710655]", "[0,281474976710655]"), 3, CLNET_ERROR_TRUNCATED,
     "bytes of data: 3, expected 281474976710655"},
};

static void test_refused_headers(void) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        put_file(refused[i].header, strlen(refused[i].header), refused[i].data);
        check_refused(refused[i].header, refused[i].result, refused[i].text);
    }
    put_file("{\"a\0b\":1}", 9, 0);
    check_refused("a zero byte in a name", CLNET_ERROR_SYNTAX,
                  "byte 11: expected more of a string");
    put_file("{}\0", 3, 0);
    check_refused("a zero byte at the end", CLNET_ERROR_SYNTAX,
                  "byte 10: expected nothing but spaces");
}

static void test_lengths(void) {
    static const struct {
        uint64_t announced, size; // of the header, of the file
        clnet_result result;
        const char *text;
    } cases[] = {
        {UINT64_MAX, 100, CLNET_ERROR_TRUNCATED, "18446744073709551615 bytes is announced"},
        {(uint64_t)1 << 63, 100, CLNET_ERROR_TRUNCATED, "9223372036854775808 bytes is announced"},
        {93, 100, CLNET_ERROR_TRUNCATED,
         "byte 0: a header of 93 bytes is announced, expected at most 92"},
        {16777217, 20000000, CLNET_ERROR_LIMIT,
         "16777217 bytes is announced, expected at most 16777216"},
        {5000000000, 6000000000, CLNET_ERROR_LIMIT, "5000000000 bytes is announced"},
        {92, 100, CLNET_ERROR_SYNTAX,
         "byte 8: expected a header that begins with '{', found byte 0x00"},
    };
    unsigned char bytes[8] = {2, 0, 0, 0, 0, 0, 0, 0};
    for (size_t i = 0; i < 8; i++) {
        disk_put(PATH, bytes, i);
        check_refused("a file below 8 bytes", CLNET_ERROR_TRUNCATED, "expected at least 8 bytes");
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        clnet__store_bytes(bytes, 8, cases[i].announced);
        disk_put(PATH, bytes, 8);
        disk_find(PATH)->size = cases[i].size;
        check_refused(cases[i].text, cases[i].result, cases[i].text);
    }
}

// A long text, for the headers below.
static struct {
    char *data;
    size_t length;
} text;

static void text_begin(void) {
    text.data = text.data != NULL ? text.data : malloc(20000000);
    text.length = 0;
}

static void text_repeat(const char *s, size_t times) {
    size_t n = strlen(s);
    for (size_t i = 0; i < times; i++, text.length += n) {
        memcpy(text.data + text.length, s, n);
    }
}

static void check_refused_text(const char *what, clnet_result result, const char *fragment) {
    put_file(text.data, text.length, 0);
    double start = seconds_now();
    check_refused(what, result, fragment);
    double seconds = seconds_now() - start;
    CHECK(seconds < 0.5 * SLOWER, "%s: %.2f s", what, seconds);
}

static void test_nesting_and_length(void) {
    text_begin();
    text_repeat("{\"a\":", 200000);
    check_refused_text("objects in objects", CLNET_ERROR_SYNTAX, "tensor a: expected dtype");
    text_begin();
    text_repeat("{\"a\":{\"shape\":", 1);
    text_repeat("[", 1000000);
    check_refused_text("arrays in arrays", CLNET_ERROR_SHAPE, "tensor a: expected a shape");
    text_begin();
    text_repeat("{\"a\":{\"x\":", 1);
    text_repeat("[", 1000000);
    check_refused_text("arrays in an unknown field", CLNET_ERROR_SYNTAX, "found \"x\"");
    text_begin();
    text_repeat("{\"a\":{\"shape\":[", 1);
    text_repeat("1", 100000);
    check_refused_text("a long number", CLNET_ERROR_SHAPE, "below 2^48, found '1'");
    text_begin();
    text_repeat("{\"", 1);
    text_repeat("n", 513);
    text_repeat("\":{}}", 1);
    check_refused_text("a long name", CLNET_ERROR_LIMIT,
                       "a name of 513 bytes, expected 512 at most");
    text_begin();
    text_repeat("{\"", 1);
    text_repeat("\\u20ac", 2796202);
    check_refused_text("16 MiB of escapes", CLNET_ERROR_SYNTAX, "more of a string, or its '\"'");
    text_begin();
    text_repeat("{", 1);
    text_repeat(" ", 16777215);
    check_refused_text("16 MiB of spaces", CLNET_ERROR_SYNTAX, "a name as a string");
}

// `count` entries of the format, which gets the entry's number four times.
static void text_entries(const char *open, const char *format, int count, const char *close) {
    text_begin();
    text_repeat(open, 1);
    for (int i = 0; i < count; i++) {
        char entry[200];
        snprintf(entry, sizeof entry, format, i, i, i + 1);
        text_repeat(i > 0 ? "," : "", 1);
        text_repeat(entry, 1);
    }
    text_repeat(close, 1);
}

// Opens as many tensors as allowed, in little text: the hardest case for the bound on memory.
static void check_many(const char *what, const char *format, size_t data, bool metadata) {
    text_entries(metadata ? "{\"__metadata__\":{" : "{", format, 65536, metadata ? "}}" : "}");
    size_t size = put_file(text.data, text.length, data), found = 0;
    clnet_context *ctx = disk_context();
    double start = seconds_now();
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    double seconds = seconds_now() - start;
    CHECK(f != NULL && seconds < 0.5 * SLOWER, "%s: %.2f s, %s", what, seconds, clnet_error(ctx));
    CHECK(memory_peak() <= 2 * size + 1048576, "%s: %zu bytes of memory for a file of %zu", what,
          memory_peak(), size);
    for (int i = 0; i < 65536; i++) {
        char name[16];
        clnet_file_tensor t = {0};
        snprintf(name, sizeof name, "%x", (unsigned)i);
        found += metadata ? clnet_tensor_file_metadata(f, name) != NULL
                          : clnet_tensor_file_find(f, name, &t);
    }
    CHECK(found == 65536, "%s: %zu names found", what, found);
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

static void test_many_entries(void) {
    check_many("tensors of a byte", "\"%x\":{" FIELDS("\"U8\"", "[]", "[%d,%d]") "}", 65536, false);
    check_many("empty tensors", "\"%x\":{" FIELDS("\"U8\"", "[0]", "[0,0]") "}", 0, false);
    check_many("empty tensors of rank 8",
               "\"%x\":{" FIELDS("\"I8\"", "[1,1,1,1,1,1,1,0]", "[0,0]") "}", 0, false);
    check_many("metadata", "\"%x\":\"\"", 0, true);
    text_entries("{", "\"%x\":{" FIELDS("\"U8\"", "[]", "[%d,%d]") "}", 100000, "}");
    check_refused_text("100,000 tensors", CLNET_ERROR_LIMIT, "more tensors than the 65536");
    text_entries("{\"__metadata__\":{", "\"%x\":\"\"", 65537, "}}");
    check_refused_text("65,537 pairs of metadata", CLNET_ERROR_LIMIT, "fewer pairs of metadata");
    text_entries("{", "\"n\":{" FIELDS("\"U8\"", "[0]", "[0,0]") "}", 65536, "}");
    check_refused_text("65,536 times one name", CLNET_ERROR_DUPLICATE, "tensor n: the name stands");
}

static void test_accepted_headers(void) {
    static const struct {
        const char *header;
        size_t data, count;
    } accepted[] = {
        {"{}", 0, 0},
        {"{}      ", 0, 0},
        {"{\"__metadata__\":{}}", 0, 0},
        {ONE("F32", "[]", "[0,4]"), 4, 1},
        {ONE("F32", "[1,1,1,1,1,1,1,1]", "[0,4]"), 4, 1},
        {ONE("F64", "[3,0,5]", "[0,0]"), 0, 1},
        {ONE("U8", "[0,281474976710655,281474976710655]", "[0,0]"), 0, 1},
        {"{" TENSOR("", "BOOL", "[2]", "[0,2]") "}", 2, 1},
        {"{" TENSOR("b", "U8", "[1]", "[2,3]") "," TENSOR("a", "BF16", "[1]", "[0,2]") "}   ", 3,
         2},
        {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("b", "F32", "[1]", "[1,5]") "}", 5, 2},
        {"{" TENSOR("z", "U8", "[0]", "[0,0]") "," TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR(
             "m", "U8", "[0,9]", "[2,2]") "}",
         2, 3},
        {"{ \"a\" :\r\n\t{ \"shape\" : [ 1 , 2 ] ,\n\"data_offsets\":[ 0 , 2 ] , \"dtype\" : "
         "\"U8\" } "
         "} ",
         2, 1},
    };
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        clnet_context *ctx = disk_context();
        put_file(accepted[i].header, strlen(accepted[i].header), accepted[i].data);
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
        CHECK(f != NULL, "%s: %s", accepted[i].header, clnet_error(ctx));
        CHECK(clnet_tensor_file_count(f) == accepted[i].count, "%s: %zu tensors",
              accepted[i].header, clnet_tensor_file_count(f));
        clnet_tensor_file_close(f);
        clnet_context_destroy(ctx);
    }
}

// The fields that are found in a header with all that strings may hold.
static void test_parsed_values(void) {
    static const char header[] =
        "{\"__metadata__\":{\"b\":\"\\\"\\\\\\/"
        "\\b\\f\\n\\r\\t\",\"a\":\"\\u00e9\\u20AC\\ud83d\\ude00\","
        "\"\":\"x\"},"
        "\"w\\u0065ight\":{\"dtype\":\"F16\",\"shape\":[12,3],\"data_offsets\":[8,80]},"
        "\"\xc3\xa9\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}";
    clnet_context *ctx = disk_context();
    size_t size = put_file(header, sizeof header - 1, 80);
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    clnet_file_tensor t = {0};
    const char *key = NULL;
    unsigned char bytes[80] = {0};
    CHECK(f != NULL, "%s", clnet_error(ctx));
    CHECK(clnet_tensor_file_find(f, "weight", &t) && strcmp(t.name, "weight") == 0 &&
              t.dtype == CLNET_F16 && t.rank == 2 && t.shape[0] == 12 && t.shape[1] == 3 &&
              t.shape[2] == 0 && t.bytes == 72 && t.offset == size - 72,
          "%s %d [%d,%d] %d at %d", t.name, t.rank, (int)t.shape[0], (int)t.shape[1], (int)t.bytes,
          (int)t.offset);
    CHECK(clnet_tensor_file_read(f, &t, bytes) == CLNET_OK && bytes[0] == 8 && bytes[71] == 79,
          "%d %d", bytes[0], bytes[71]);
    CHECK(clnet_tensor_file_at(f, 1, &t) && strcmp(t.name, "\xc3\xa9") == 0, "%s", t.name);
    CHECK(!clnet_tensor_file_at(f, 2, &t) && !clnet_tensor_file_find(f, "weigh", &t), "too many");
    CHECK(strcmp(clnet_tensor_file_metadata(f, "a"), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80") == 0,
          "%s", clnet_tensor_file_metadata(f, "a"));
    CHECK(strcmp(clnet_tensor_file_metadata(f, "b"), "\"\\/\b\f\n\r\t") == 0, "escapes");
    CHECK(clnet_tensor_file_metadata(f, "c") == NULL, "a key that is not there");
    CHECK(clnet_tensor_file_keys(f, 1, &key) == 3 && strcmp(key, "a") == 0, "%s", key);
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

// >>mutations

// Reads all of a file that opened: every byte behind the header belongs to one tensor, and comes
// out as it stands there. Writes it anew, which has to open too.
static void check_defined(clnet_context *ctx, clnet_tensor_file *f) {
    const disk_file *stored = disk_find(PATH);
    clnet_file_item items[8] = {{0}};
    unsigned char bytes[8][64];
    size_t count = clnet_tensor_file_count(f), total = 0;
    bool same = true;
    for (size_t i = 0; i < count; i++) {
        clnet_file_tensor t = {0};
        clnet_tensor_file_at(f, i, &t);
        same = same && clnet_tensor_file_read(f, &t, bytes[i]) == CLNET_OK &&
               memcmp(bytes[i], stored->data + t.offset, (size_t)t.bytes) == 0;
        items[i] =
            (clnet_file_item){.name = t.name, .dtype = t.dtype, .rank = t.rank, .data = bytes[i]};
        memcpy(items[i].shape, t.shape, sizeof t.shape);
        total += (size_t)t.bytes;
    }
    if (!same || 8 + clnet__load_bytes(stored->data, 8) + total != stored->size) {
        CHECK(false, "tensors do not cover the file: %zu bytes", total);
    }
    if (clnet_safetensors_write(ctx, "copy", items, count, NULL, 0) != CLNET_OK) {
        CHECK(false, "cannot be written anew: %s", clnet_error(ctx));
    }
    clnet_tensor_file *copy = clnet_tensor_file_open(ctx, "copy");
    if (clnet_tensor_file_count(copy) != count) {
        CHECK(false, "cannot be read again: %s", clnet_error(ctx));
    }
    clnet_tensor_file_close(copy);
}

// Opens the mutated file; true: it was accepted.
static bool try_mutation(clnet_context *ctx) {
    size_t before = memory.now;
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    if (f != NULL) {
        check_defined(ctx, f);
    } else if (clnet_context_result(ctx) == CLNET_OK ||
               strncmp(clnet_error(ctx), PATH, strlen(PATH)) != 0) {
        CHECK(false, "refused with result %d: %s", (int)clnet_context_result(ctx),
              clnet_error(ctx));
    }
    clnet_tensor_file_close(f);
    clnet_context_clear(ctx);
    if (memory.now != before) {
        CHECK(false, "%zu bytes are left", memory.now - before);
    }
    return f != NULL;
}

static void test_mutations(void) {
    static const char header[] =
        "{\"__metadata__\":{\"k\":\"\\u00e9\"}," TENSOR("a.b", "F32", "[2,1]", "[0,8]") "," TENSOR(
            "a\\u0063", "U8", "[]", "[8,9]") "," TENSOR("z", "BF16", "[0]", "[9,9]") "} ";
    clnet_context *ctx = disk_context();
    size_t size = put_file(header, sizeof header - 1, 9);
    long accepted = 0, refusals = 0;
    disk_file *f = disk_find(PATH);
    CHECK(try_mutation(ctx), "the file itself is refused");
    for (size_t i = 0; i < size; i++) {
        unsigned char kept = f->data[i];
        for (int value = 0; value < 256; value++) {
            f->data[i] = (unsigned char)value;
            bool ok = try_mutation(ctx);
            accepted += ok;
            refusals += !ok;
            if (!ok && (value == kept || i >= size - 9)) {
                CHECK(false, "byte %zu = %d is refused", i, value);
            }
        }
        f->data[i] = kept;
    }
    CHECK(accepted > 256 * 9 && refusals > accepted, "%ld accepted, %ld refused", accepted,
          refusals);
    for (f->size = 0; f->size < size; f->size++) {
        f->stored = (size_t)f->size;
        CHECK(!try_mutation(ctx), "cut to %d bytes it is accepted", (int)f->size);
    }
    clnet_context_destroy(ctx);
}

// >>numbers

static double half_by_definition(unsigned bits) {
    int sign = bits >> 15 ? -1 : 1, exponent = (int)(bits >> 10 & 31),
        mantissa = (int)(bits & 1023);
    if (exponent == 31) {
        return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
    }
    return sign * (exponent != 0 ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

static double bfloat_by_definition(unsigned bits) {
    int sign = bits >> 15 ? -1 : 1, exponent = (int)(bits >> 7 & 255), mantissa = (int)(bits & 127);
    if (exponent == 255) {
        return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
    }
    return sign * (exponent != 0 ? ldexp(128 + mantissa, exponent - 134) : ldexp(mantissa, -133));
}

// The pattern that a value is encoded as.
static unsigned encoded(double value, clnet_dtype dtype) {
    unsigned char bytes[2];
    clnet_real real = (clnet_real)value;
    clnet_encode(bytes, &real, 1, dtype);
    return bytes[0] | (unsigned)bytes[1] << 8;
}

// Every pattern decodes to its value and encodes to itself; a value between two neighbours becomes
// the nearer one, the middle the even one.
static void check_short_type(clnet_dtype dtype, double (*definition)(unsigned), unsigned quiet) {
    long wrong = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        const unsigned char bytes[2] = {(unsigned char)bits, (unsigned char)(bits >> 8)};
        double expected = definition(bits), next = definition(bits + 1);
        clnet_real value;
        clnet_decode(&value, bytes, 1, dtype);
        if (isnan(expected)) {
            wrong += !isnan(value) || (encoded((double)value, dtype) | quiet) != (bits | quiet);
            continue;
        }
        wrong += !((double)value == expected) || (signbit(value) != 0) != (bits >> 15 != 0);
        wrong += encoded(expected, dtype) != bits;
        if ((bits & 0x7fff) == 0x7fff || isinf(expected) || isinf(next)) {
            continue;
        }
        double middle = (expected + next) / 2, little = (next - expected) / 64;
        wrong += encoded(middle, dtype) != (bits & 1 ? bits + 1 : bits);
        wrong += encoded(middle - little, dtype) != bits;
        wrong += encoded(middle + little, dtype) != bits + 1;
    }
    CHECK(wrong == 0, "%s: %ld of 65,536 patterns are wrong", clnet_dtype_name(dtype), wrong);
}

static void test_number_types(void) {
    check_short_type(CLNET_F16, half_by_definition, 0x200);
    check_short_type(CLNET_BF16, bfloat_by_definition, 0x40);
    CHECK(encoded(65519.996, CLNET_F16) == 0x7bff && encoded(65520, CLNET_F16) == 0x7c00 &&
              encoded(-1e30, CLNET_F16) == 0xfc00 && encoded(ldexp(1, -25), CLNET_F16) == 0 &&
              encoded(-1e-30, CLNET_F16) == 0x8000 && encoded(3.4e38, CLNET_BF16) == 0x7f80,
          "the ends of the range");
    for (int i = 0; i < CLNET_DTYPE_COUNT; i++) {
        clnet_dtype dtype = (clnet_dtype)i;
        CHECK(clnet__dtype_of(clnet_dtype_name(dtype)) == dtype && clnet_dtype_size(dtype) > 0,
              "%d", i);
    }
    CHECK(clnet_dtype_size((clnet_dtype)99) == 0 && clnet_dtype_name((clnet_dtype)-1)[0] == '?',
          "none");
    clnet_real value = 1;
    unsigned char bytes[8] = {0};
    CHECK(!clnet_decode(&value, bytes, 1, CLNET_I32) && !clnet_encode(bytes, &value, 1, CLNET_U8),
          "integers");
    CHECK(clnet_decode(&value, bytes, 1, CLNET_F64) == (sizeof value == 8), "F64");
    CHECK(clnet_encode(bytes, &(clnet_real){-0.375}, 1, CLNET_F64) &&
              memcmp(bytes, &(double){-0.375}, 8) == 0,
          "F64");
}

// Reads tensors as numbers: longer than a block of the reader, at an odd place of the file.
static void test_read_real(void) {
    enum { N = 5000 };
    static clnet_real values[N], back[N];
    static unsigned char shorts[2 * N], floats[4 * N];
    static const int64_t label = 7;
    static const double third = 1.0 / 3;
    for (int i = 0; i < N; i++) {
        values[i] = (clnet_real)(i % 4000 - 2000) / 8;
    }
    values[0] = (clnet_real)NAN;
    values[1] = -(clnet_real)INFINITY;
    values[2] = (clnet_real)1e38;
    clnet_encode(floats, values, N, CLNET_F32);
    clnet_encode(shorts, values + 3, N - 3, CLNET_F16);
    const clnet_file_item items[] = {
        {.name = "floats", .rank = 2, .shape = {N / 10, 10}, .data = floats},
        {.name = "halves", .dtype = CLNET_F16, .rank = 1, .shape = {N - 3}, .data = shorts},
        {.name = "label", .dtype = CLNET_I64, .data = &label},
        {.name = "f64", .dtype = CLNET_F64, .data = &third}};
    clnet_context *ctx = disk_context();
    clnet_file_tensor t;
    CHECK(clnet_safetensors_write(ctx, PATH, items, 4, NULL, 0) == CLNET_OK, "%s",
          clnet_error(ctx));
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    CHECK(clnet_tensor_file_find(f, "floats", &t) &&
              clnet_tensor_file_read_real(f, &t, back) == CLNET_OK,
          "%s", clnet_error(ctx));
    CHECK(isnan(back[0]) && isinf(back[1]) &&
              memcmp(back + 3, values + 3, sizeof back - 3 * sizeof *back) == 0,
          "F32 came back as %g %g ..", (double)back[3], (double)back[4]);
    CHECK(clnet_tensor_file_find(f, "halves", &t) &&
              clnet_tensor_file_read_real(f, &t, back) == CLNET_OK &&
              memcmp(back, values + 3, (N - 3) * sizeof *back) == 0,
          "F16 came back as %g %g ..", (double)back[0], (double)back[1]);
    CHECK(clnet_tensor_file_find(f, "label", &t) &&
              clnet_tensor_file_read_real(f, &t, back) == CLNET_ERROR_DTYPE &&
              strstr(clnet_error(ctx), "tensor label: its dtype is I64, expected F32, F16 or BF16"),
          "%s", clnet_error(ctx));
    CHECK(clnet_tensor_file_read(f, &t, back) == CLNET_ERROR_DTYPE, "the first failure stays");
    clnet_context_clear(ctx);
    disk_find(PATH)->size -= 2 * N - 7; // in the middle of the halves, which stand last
    CHECK(clnet_tensor_file_find(f, "halves", &t) &&
              clnet_tensor_file_read_real(f, &t, back) == CLNET_ERROR_TRUNCATED,
          "%s", clnet_error(ctx));
    CHECK(clnet_tensor_file_read_real(f, &t, back) == CLNET_ERROR_TRUNCATED, "the failure stays");
    disk_find(PATH)->size += 2 * N - 7;
    clnet_context_clear(ctx);
    clnet_tensor_file_find(f, "f64", &t);
    CHECK(clnet_tensor_file_read_real(f, &t, back) ==
              (sizeof(clnet_real) == 8 ? CLNET_OK : CLNET_ERROR_DTYPE),
          "%s", clnet_error(ctx));
    CHECK(sizeof *back < 8 || (double)back[0] == third, "F64 came back as %.17g", (double)back[0]);
    clnet_context_clear(ctx);
    t.offset = disk_find(PATH)->size - 7;
    CHECK(clnet_tensor_file_read(f, &t, back) == CLNET_ERROR_ARGUMENT, "outside of the file");
    clnet_context_clear(ctx);
    t.offset = UINT64_MAX - 3;
    CHECK(clnet_tensor_file_read(f, &t, back) == CLNET_ERROR_ARGUMENT, "outside of 64 bits");
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

// >>large files: nothing is read but what is asked for

static void check_large(uint64_t elements) {
    char header[300];
    unsigned char bytes[16];
    clnet_context *ctx = disk_context();
    clnet_file_tensor t;
    snprintf(header, sizeof header,
             "{" TENSOR("a", "U8", "[%llu]", "[0,%llu]") "," TENSOR("b", "U8", "[16]",
                                                                    "[%llu,%llu]") "}",
             (unsigned long long)elements, (unsigned long long)elements,
             (unsigned long long)elements, (unsigned long long)elements + 16);
    disk_find(PATH)->size = put_file(header, strlen(header), 0) + elements + 16;
    disk_find(PATH)->size = 8 + strlen(header) + elements + 16;
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    CHECK(f != NULL && disk.bytes_read == 8 + strlen(header), "%llu bytes were read: %s",
          (unsigned long long)disk.bytes_read, clnet_error(ctx));
    CHECK(memory_peak() < 8192, "%zu bytes of memory", memory_peak());
    CHECK(clnet_tensor_file_find(f, "b", &t) && t.offset == 8 + strlen(header) + elements,
          "offset");
    CHECK(clnet_tensor_file_read(f, &t, bytes) == CLNET_OK &&
              disk.bytes_read == 8 + strlen(header) + 16,
          "%llu bytes were read: %s", (unsigned long long)disk.bytes_read, clnet_error(ctx));
    disk_find(PATH)->size -= 3; // the file changes while it is open
    CHECK(clnet_tensor_file_read(f, &t, bytes) == CLNET_ERROR_TRUNCATED &&
              strstr(clnet_error(ctx), "expected 16 bytes, found 13"),
          "%s", clnet_error(ctx));
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

// >>writing

static clnet_result fill_count(void *user, void *bytes) {
    const size_t *n = user;
    for (size_t i = 0; i < *n; i++) {
        ((unsigned char *)bytes)[i] = (unsigned char)i;
    }
    return CLNET_OK;
}

static clnet_result fill_fails(void *user, void *bytes) {
    (void)user;
    (void)bytes;
    return CLNET_ERROR_DEVICE;
}

// The whole file, byte for byte.
static void test_written_bytes(void) {
    static const char header[] =
        "{\"__metadata__\":{\"a\":\"\\u000a\\\"\\\\\xc3\xa9\",\"b\":\"\"},"
        "\"z\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[8,16]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]}}";
    static const unsigned char data[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    size_t three = 3, eight = 8;
    clnet_file_item items[4] = {
        {.name = "a",
         .dtype = CLNET_U8,
         .rank = 1,
         .shape = {3},
         .fill = fill_count,
         .user = &three},
        {.name = "z", .dtype = CLNET_I64, .fill = fill_count, .user = &eight},
        {.name = "empty", .rank = 1, .shape = {0}},
        {.name = "b", .rank = 2, .shape = {1, 2}, .data = data}};
    clnet_file_pair pairs[2] = {{"b", ""}, {"a", "\n\"\\\xc3\xa9"}};
    size_t padded = (sizeof header - 1 + 7) / 8 * 8;
    for (int turn = 0; turn < 4; turn++) {
        clnet_context *ctx = disk_context();
        clnet_result result = clnet_safetensors_write(ctx, "out", items, 4, pairs, 2);
        const disk_file *f = disk_find("out");
        CHECK(result == CLNET_OK && f != NULL && disk.open == 0, "%s", clnet_error(ctx));
        CHECK(f->size == 8 + padded + 19 && clnet__load_bytes(f->data, 8) == padded, "%d bytes",
              (int)f->size);
        CHECK(memcmp(f->data + 8, header, sizeof header - 1) == 0 &&
                  f->data[8 + padded - 1] == (padded > sizeof header - 1 ? ' ' : '}'),
              "%.*s", (int)padded, (const char *)f->data + 8);
        CHECK(memcmp(f->data + 8 + padded, data, 8) == 0 &&
                  memcmp(f->data + 16 + padded, data, 8) == 0 &&
                  memcmp(f->data + 24 + padded, data, 3) == 0,
              "data");
        CHECK(disk_find("out.tmp") == NULL, "the temporary file is still there");
        clnet_file_item first = items[0]; // the same in another order
        memmove(items, items + 1, 3 * sizeof *items);
        items[3] = first;
        clnet_file_pair pair = pairs[0];
        pairs[0] = pairs[1];
        pairs[1] = pair;
        clnet_context_destroy(ctx);
    }
}

// Memory while writing: the header and the largest tensor, not their sum.
static void test_streaming(void) {
    size_t bytes = 100000;
    clnet_file_item items[20];
    char names[20][16];
    clnet_context *ctx = disk_context();
    for (int i = 0; i < 20; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        items[i] = (clnet_file_item){.name = names[i],
                                     .dtype = CLNET_U8,
                                     .rank = 1,
                                     .shape = {bytes},
                                     .fill = fill_count,
                                     .user = &bytes};
    }
    CHECK(clnet_safetensors_write(ctx, "out", items, 20, NULL, 0) == CLNET_OK, "%s",
          clnet_error(ctx));
    CHECK(memory_peak() < bytes + 16384, "%zu bytes of memory", memory_peak());
    CHECK(disk_find("out")->size > 20 * bytes, "%d bytes", (int)disk_find("out")->size);
    clnet_context_destroy(ctx);
}

static void check_not_written(const clnet_file_item *items, size_t count,
                              const clnet_file_pair *pairs, size_t pair_count,
                              clnet_result expected, const char *fragment) {
    clnet_context *ctx = disk_context();
    disk_put("out", "old", 3);
    clnet_result result = clnet_safetensors_write(ctx, "out", items, count, pairs, pair_count);
    CHECK(result == expected && strstr(clnet_error(ctx), fragment) != NULL,
          "result %d, expected %d and \"%s\": %s", (int)result, (int)expected, fragment,
          clnet_error(ctx));
    CHECK(disk_find("out")->size == 3 && disk_find("out.tmp") == NULL && disk.open == 0,
          "%s: the disk has changed", fragment);
    clnet_context_destroy(ctx);
}

static void test_refused_items(void) {
    static char long_name[514];
    static const unsigned char data[8] = {0};
    const clnet_file_item good = {
        .name = "good", .dtype = CLNET_U8, .rank = 1, .shape = {8}, .data = data};
    const clnet_result argument = CLNET_ERROR_ARGUMENT;
    clnet_file_item items[2] = {good, good};
    memset(long_name, 'n', 513);
    check_not_written(items, 2, NULL, 0, CLNET_ERROR_DUPLICATE,
                      "tensor good: the name is given twice");
    items[1].dtype = CLNET_I8;
    items[1].name = "bad";
    items[1].rank = 9;
    check_not_written(items, 2, NULL, 0, argument,
                      "tensor bad: it has a negative number of axes, or more");
    items[1].rank = -1;
    check_not_written(items, 2, NULL, 0, argument, "tensor bad: it has a negative number of axes");
    items[1].rank = 2;
    items[1].shape[1] = (uint64_t)1 << 48;
    items[1].shape[0] = 0;
    check_not_written(items, 2, NULL, 0, argument, "tensor bad: one of its axes is 2^48 or longer");
    items[1].shape[0] = (uint64_t)1 << 40;
    check_not_written(items, 2, NULL, 0, argument, "tensor bad: its shape has too many bytes");
    items[1] = good;
    items[1].dtype = CLNET_DTYPE_COUNT;
    check_not_written(items, 2, NULL, 0, argument, "tensor good: its dtype is unknown");
    items[1] = good;
    items[1].data = NULL;
    items[1].name = "bad";
    check_not_written(items, 2, NULL, 0, argument,
                      "tensor bad: it has neither data nor a function");
    items[1].fill = fill_fails;
    check_not_written(items, 2, NULL, 0, CLNET_ERROR_DEVICE,
                      "tensor bad: its values are not to be had");
    const char *const names[] = {NULL, "a\xff", "a\n", "__metadata__"};
    for (int i = 0; i < 4; i++) {
        items[1].name = names[i];
        check_not_written(items, 2, NULL, 0, argument, "its name is no UTF-8 text, has control");
    }
    items[1].name = long_name;
    check_not_written(items, 2, NULL, 0, CLNET_ERROR_LIMIT,
                      "its name is longer than clnet accepts");
    items[1] = items[0];
    items[1].name = "more";
    items[0].shape[0] = items[1].shape[0] = ((uint64_t)1 << 48) - 1;
    check_not_written(items, 2, NULL, 0, CLNET_ERROR_LIMIT,
                      "tensor more: all together have too many");
    check_not_written(&good, 65537, NULL, 0, CLNET_ERROR_LIMIT, "65537 tensors and 0 pairs");
    const clnet_file_pair twice[2] = {{"k", "1"}, {"k", "2"}}, no_value = {"k", NULL};
    const clnet_file_pair bad_key = {"\xc0\x80", ""}, bad_value = {"k", "\xff"};
    check_not_written(&good, 1, twice, 2, CLNET_ERROR_DUPLICATE,
                      "metadata k: the key is given twice");
    check_not_written(&good, 1, &no_value, 1, argument,
                      "metadata k: the key or its value is no UTF-8");
    check_not_written(&good, 1, &bad_key, 1, argument, "the key or its value is no UTF-8 text");
    check_not_written(&good, 1, &bad_value, 1, argument, "the key or its value is no UTF-8 text");
    text_begin();
    text_repeat("v", 16777200);
    text.data[text.length] = 0;
    const clnet_file_pair huge = {"k", text.data};
    check_not_written(&good, 1, &huge, 1, CLNET_ERROR_LIMIT, "expected at most 16777216");
}

// >>failures

static const char OLD[] = "the file that was there";

// Writes over an old file on a disk, or with memory, that may fail. The old one stays as it is, or
// is replaced as a whole. True: it was written.
static bool write_over(clnet_context *ctx, const char *what) {
    static const unsigned char data[12] = {1, 2, 3};
    size_t bytes = 5;
    const clnet_file_item items[2] = {{.name = "a", .rank = 1, .shape = {3}, .data = data},
                                      {.name = "b",
                                       .dtype = CLNET_U8,
                                       .rank = 1,
                                       .shape = {5},
                                       .fill = fill_count,
                                       .user = &bytes}};
    const clnet_file_pair pair = {"k", "v"};
    size_t before = memory.now;
    bool done = clnet_safetensors_write(ctx, "out", items, 2, &pair, 1) == CLNET_OK;
    const disk_file *f = disk_find("out");
    bool old = f != NULL && f->size == sizeof OLD && memcmp(f->data, OLD, sizeof OLD) == 0;
    CHECK(f != NULL && old == !done, "%s: the old file is %s", what, old ? "still there" : "gone");
    CHECK(disk_find("out.tmp") == NULL && disk.open == 0, "%s: a temporary file is left", what);
    CHECK(memory.now == before, "%s: memory is left", what);
    return done;
}

static void test_disk_failures(bool silent) {
    static const char *const said[] = {"out.tmp: cannot be opened for writing",
                                       "out.tmp: cannot be written",
                                       "out.tmp: cannot be written",
                                       "out.tmp: cannot be written",
                                       "out.tmp: cannot be synced",
                                       "out.tmp: cannot be closed",
                                       "out: cannot be replaced"};
    const int calls = sizeof said / sizeof said[0];
    bool done = false;
    int n = 0;
    while (!done && n < 20) {
        clnet_context *ctx = disk_context();
        disk_put("out", OLD, sizeof OLD);
        disk.silent = silent;
        disk.fail_at = ++n;
        done = write_over(ctx, "a failing call");
        if (!done && n <= calls) {
            CHECK(clnet_context_result(ctx) == CLNET_ERROR_FILE &&
                      strstr(clnet_error(ctx), said[n - 1]) == clnet_error(ctx) &&
                      strstr(clnet_error(ctx), silent ? "is not known" : ": ") != NULL,
                  "call %d: %s", n, clnet_error(ctx));
        }
        clnet_context_destroy(ctx);
    }
    CHECK(n == calls + 1, "%d calls that can fail", n - 1);
}

static void test_full_disk(void) {
    bool done = false;
    size_t space = 0;
    for (; !done && space < 1000; space++) {
        clnet_context *ctx = disk_context();
        disk_put("out", OLD, sizeof OLD);
        disk.space = space;
        done = write_over(ctx, "a full disk");
        CHECK(done || (clnet_context_result(ctx) == CLNET_ERROR_FILE &&
                       strstr(clnet_error(ctx), strerror(ENOSPC)) != NULL),
              "%s", clnet_error(ctx));
        clnet_context_destroy(ctx);
    }
    CHECK(space - 1 == disk_find("out")->size, "it took %zu bytes of space", space - 1);
}

// Reading, with every call of the disk failing in turn; then both with every allocation failing.
static void test_other_failures(void) {
    int n = 0, opened = 0, written = 0;
    unsigned char bytes[64];
    for (n = 1; opened == 0 && n < 20; n++) {
        clnet_context *ctx = disk_context();
        clnet_file_tensor t;
        put_file(ONE("U8", "[4]", "[0,4]"), strlen(ONE("U8", "[4]", "[0,4]")), 4);
        disk.fail_at = n;
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
        opened = clnet_tensor_file_find(f, "a.weight", &t) &&
                 clnet_tensor_file_read(f, &t, bytes) == CLNET_OK;
        CHECK(opened || (clnet_context_result(ctx) == CLNET_ERROR_FILE &&
                         strstr(clnet_error(ctx), PATH) == clnet_error(ctx)),
              "call %d: %s", n, clnet_error(ctx));
        clnet_tensor_file_close(f);
        CHECK(disk.open == 0, "call %d: the file is still open", n);
        clnet_context_destroy(ctx);
    }
    CHECK(n == 7, "%d calls that can fail", n - 2); // open, size, read three times
    static const char with_metadata[] = "{\"__metadata__\":{\"k\":\"v\"}}";
    put_file(with_metadata, sizeof with_metadata - 1, 0);
    for (n = 1, opened = 0; (opened == 0 || written == 0) && n < 20; n++) {
        clnet_context *ctx = disk_context();
        size_t before = memory.now;
        memory.calls = 0;
        memory.fail_at = n;
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
        opened = f != NULL;
        CHECK(opened || clnet_context_result(ctx) == CLNET_ERROR_MEMORY, "%s", clnet_error(ctx));
        clnet_tensor_file_close(f);
        CHECK(memory.now == before && disk.open == 0, "allocation %d: something is left", n);
        clnet_context_clear(ctx);
        memory.calls = 0;
        disk_put("out", OLD, sizeof OLD);
        written = write_over(ctx, "no memory");
        CHECK(written || clnet_context_result(ctx) == CLNET_ERROR_MEMORY, "%s", clnet_error(ctx));
        clnet_context_destroy(ctx);
    }
    CHECK(n > 5 && opened && written, "%d allocations", n - 1);
}

// A context that failed already, and what is not there.
static void test_nothing(void) {
    clnet_context *ctx = disk_context();
    clnet_file_tensor t = {0};
    CHECK(clnet_tensor_file_open(ctx, "missing") == NULL &&
              clnet_context_result(ctx) == CLNET_ERROR_FILE &&
              strstr(clnet_error(ctx), "missing: cannot be opened: ") == clnet_error(ctx),
          "%s", clnet_error(ctx));
    disk.calls = 0;
    disk_put("out", OLD, sizeof OLD);
    CHECK(clnet_tensor_file_open(ctx, "out") == NULL && disk.calls == 0, "opened after a failure");
    CHECK(clnet_safetensors_write(ctx, "out", NULL, 0, NULL, 0) == CLNET_ERROR_FILE &&
              disk.calls == 0,
          "written after a failure");
    clnet_context_clear(ctx);
    CHECK(clnet_tensor_file_open(ctx, NULL) == NULL &&
              clnet_context_result(ctx) == CLNET_ERROR_ARGUMENT,
          "no path");
    clnet_context_clear(ctx);
    CHECK(clnet_safetensors_write(ctx, NULL, NULL, 0, NULL, 0) == CLNET_ERROR_ARGUMENT, "no path");
    clnet_context_destroy(ctx);
    CHECK(clnet_tensor_file_open(NULL, "out") == NULL && clnet_tensor_file_count(NULL) == 0 &&
              !clnet_tensor_file_at(NULL, 0, &t) && !clnet_tensor_file_find(NULL, "a", &t) &&
              clnet_tensor_file_metadata(NULL, "a") == NULL &&
              clnet_tensor_file_keys(NULL, 0, NULL) == 0 &&
              clnet_tensor_file_read(NULL, &t, &t) == CLNET_ERROR_ARGUMENT &&
              clnet_safetensors_write(NULL, "out", NULL, 0, NULL, 0) == CLNET_ERROR_MEMORY,
          "NULL");
    clnet_tensor_file_close(NULL);
}

// >>stdio: real files

static void check_stdio_failure(const char *path, bool write, clnet_result expected,
                                const char *why) {
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_file_item item = {.name = "a", .dtype = CLNET_U8, .data = "x"};
    if (write) {
        clnet_safetensors_write(ctx, path, &item, 1, NULL, 0);
    } else {
        clnet_tensor_file_close(clnet_tensor_file_open(ctx, path));
    }
    CHECK(clnet_context_result(ctx) == expected && strstr(clnet_error(ctx), path) != NULL &&
              strstr(clnet_error(ctx), why) != NULL,
          "%s: result %d: %s", path, (int)clnet_context_result(ctx), clnet_error(ctx));
    clnet_context_destroy(ctx);
}

// A file of more than 4 GiB, most of which is a hole.
static void test_sparse_file(const char *path) {
    static const char header[] = "{" TENSOR("a", "U8", "[5000000000]", "[0,5000000000]") "," TENSOR(
        "b", "U8", "[2]", "[5000000000,5000000002]") "}";
    unsigned char length[8], bytes[2] = {0};
    clnet_file_tensor t;
    FILE *out = fopen(path, "wb");
    clnet__store_bytes(length, 8, sizeof header - 1);
    bool made = sizeof(long) > 4 && out != NULL && fwrite(length, 1, 8, out) == 8 &&
                fputs(header, out) >= 0 && fseek(out, (long)5000000000, SEEK_CUR) == 0 &&
                fputs("yz", out) >= 0;
    made = out != NULL && fclose(out) == 0 && made;
    if (!made) {
        SKIP("a file of 5 GB with a hole cannot be made here");
        remove(path);
        return;
    }
    clnet_context *ctx = clnet_context_create(NULL);
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, path);
    CHECK(clnet_tensor_file_find(f, "b", &t) && clnet_tensor_file_read(f, &t, bytes) == CLNET_OK &&
              bytes[0] == 'y' && bytes[1] == 'z',
          "%s", clnet_error(ctx));
    clnet_tensor_file_find(f, "a", &t);
    t.bytes = 2;
    CHECK(clnet_tensor_file_read(f, &t, bytes) == CLNET_OK && bytes[0] == 0, "backwards: %s",
          clnet_error(ctx));
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
    remove(path);
}

static void test_stdio(void) {
    const char *parent = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    char folder[300], path[340], missing[360];
    unsigned char bytes[4] = {1, 2, 3, 4}, back[4] = {0};
    clnet_file_item item = {.name = "a", .dtype = CLNET_U8, .rank = 1, .shape = {4}, .data = bytes};
    clnet_file_tensor t;
    snprintf(folder, sizeof folder, "%.200s/clnet-files-XXXXXX", parent);
    if (mkdtemp(folder) == NULL) {
        SKIP("no folder can be made in %s", parent);
        return;
    }
    snprintf(path, sizeof path, "%s/w.safetensors", folder);
    snprintf(missing, sizeof missing, "%s/missing/w.safetensors", folder);
    clnet_context *ctx = clnet_context_create(NULL);
    for (int turn = 0; turn < 2; turn++) { // a new file, then over it
        bytes[0] = (unsigned char)(turn + 5);
        clnet_safetensors_write(ctx, path, &item, 1, NULL, 0);
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, path);
        CHECK(clnet_tensor_file_find(f, "a", &t) &&
                  clnet_tensor_file_read(f, &t, back) == CLNET_OK && memcmp(bytes, back, 4) == 0,
              "%s", clnet_error(ctx));
        if (turn == 1) {
            CHECK(truncate(path, 20) == 0, "truncate");
            CHECK(clnet_tensor_file_read(f, &t, back) != CLNET_OK || memcmp(bytes, back, 4) == 0,
                  "a file that was cut while open gives other bytes");
        }
        clnet_tensor_file_close(f);
        clnet_context_clear(ctx);
    }
    clnet_context_destroy(ctx);
    check_stdio_failure(path, false, CLNET_ERROR_TRUNCATED, "is announced, expected at most 12");
    check_stdio_failure(missing, false, CLNET_ERROR_FILE, strerror(ENOENT));
    check_stdio_failure(missing, true, CLNET_ERROR_FILE, strerror(ENOENT));
    check_stdio_failure(folder, false, CLNET_ERROR_FILE, strerror(EISDIR));
    check_stdio_failure("/dev/null", false, CLNET_ERROR_TRUNCATED, "at least 8 bytes, found 0");
    test_sparse_file(path);
    snprintf(path, sizeof path, "%s/folder", folder);
    mkdir(path, 0700);
    check_stdio_failure(path, true, CLNET_ERROR_FILE, "cannot be replaced");
    rmdir(path);
    remove(missing);
    snprintf(path, sizeof path, "%s/w.safetensors", folder);
    remove(path);
    CHECK(rmdir(folder) == 0, "%s: something is left: %s", folder, strerror(errno));
}

int main(void) {
    test_refused_headers();
    test_lengths();
    test_nesting_and_length();
    test_many_entries();
    test_accepted_headers();
    test_parsed_values();
    test_mutations();
    test_number_types();
    test_read_real();
    check_large(500000000);
    check_large(5000000000);
    test_written_bytes();
    test_streaming();
    test_refused_items();
    test_disk_failures(false);
    test_disk_failures(true);
    test_full_disk();
    test_other_failures();
    test_nothing();
    test_stdio();
    free(text.data);
    for (int i = 0; i < 4; i++) {
        free(disk.files[i].data);
    }
    return test_close();
}
