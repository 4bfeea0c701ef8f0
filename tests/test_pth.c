// Files of torch.save: what is accepted, what is refused with which result and sentence, every opcode,
// every change of a byte, memory, failures, what is written. The hostile files are made here: pickles
// from a line of text (see "assemble"), zip files entry by entry; then single numbers are changed.
// Files that PyTorch wrote lie in tests/data, made by make_pth.py.
#define _POSIX_C_SOURCE 200809L
#define CLNET_IMPLEMENTATION
#include "clnet.h"
#include "test.h"
#include "test_disk.h"

#include <unistd.h>

static const char PATH[] = "hostile.pth";

// >>bytes: a text of bytes that grows

typedef struct bytes {
    unsigned char *data;
    size_t n, room;
} bytes;

static void add(bytes *b, const void *data, size_t n) {
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->data = realloc(b->data, b->room);
    }
    if (n > 0) {
        memcpy(b->data + b->n, data, n);
    }
    b->n += n;
}

static void add_number(bytes *b, uint64_t value, size_t n) {
    unsigned char data[8];
    clnet__store_bytes(data, n, value);
    add(b, data, n);
}

// >>pickle: an assembler of pickles
// Words, separated by spaces: an opcode as its character or as two hexadecimal digits, which serve for
// other bytes too; c=module,name; X=text or U=text or 8A=digits, with their count before them; K=, q=,
// h= (1 byte), M= (2), J=, r=, j= (4) with a number. In texts _ stands for a space.

static void assemble_word(bytes *b, const char *word) {
    const char *value = strchr(word, '=');
    const unsigned char code = (unsigned char)*word;
    if (value == NULL && strlen(word) == 2) {
        add_number(b, strtoul(word, NULL, 16), 1);
        return;
    }
    add(b, &code, 1);
    if (value == NULL || value[1] == 0) {
        return;
    }
    const size_t n = strlen(++value);
    if (code == 'c') {
        add(b, value, n);
        b->data[b->n - n + (size_t)(strchr(value, ',') - value)] = '\n';
        add(b, "\n", 1);
    } else if (code == 'X' || code == 'U') {
        add_number(b, n, code == 'X' ? 4 : 1);
        add(b, value, n);
    } else {
        add_number(b, strtoull(value, NULL, 10), strchr("Kqh", code) ? 1 : code == 'M' ? 2 : 4);
    }
}

static void assemble(bytes *b, const char *program) {
    char word[200];
    for (int n = 0; sscanf(program, "%199s%n", word, &n) == 1; program += n) {
        assemble_word(b, word);
    }
}

#define STORAGE(type, key, count) "( X=storage c=" type " X=" key " X=cpu K=" count " t Q "
#define V2(storage, first, shape, strides)                                                         \
    "c=torch._utils,_rebuild_tensor_v2 ( " storage "K=" first " ( " shape "t ( " strides           \
    "t 89 c=collections,OrderedDict ) R t R "
#define FLOATS      STORAGE("torch,FloatStorage", "0", "6")
#define TENSOR      V2(FLOATS, "0", "K=2 K=3 ", "K=3 K=1 ")
#define DICT(items) "80 02 } ( " items "u ."
#define GOOD        DICT("X=w " TENSOR)

// >>zip: files of torch.save's two formats

typedef struct entry {
    const char *name;
    const void *data;
    size_t n;
    unsigned flags;            // 8: a descriptor
    size_t local, at, central; // out: where its header, its bytes, its line of the directory stand
} entry;

static uint32_t crc_by_definition(const unsigned char *data, size_t n) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < 8 * n; i++) {
        const uint32_t bit = (uint32_t)(data[i / 8] >> i % 8 & 1);
        crc = crc >> 1 ^ ((crc ^ bit) & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void add_fields(bytes *b, const entry *e, bool central) {
    const bool later = (e->flags & 8) != 0 && !central;
    add_number(b, 20, 2);
    add_number(b, e->flags, 2);
    add_number(b, 0, 6);
    add_number(b, later ? 0 : crc_by_definition(e->data, e->n), 4);
    add_number(b, later ? 0 : e->n, 4);
    add_number(b, later ? 0 : e->n, 4);
    add_number(b, strlen(e->name), 2);
    add_number(b, 0, 2);
}

// `zip64`: with the two further records that PyTorch writes.
static void add_zip(bytes *b, entry *entries, size_t count, bool zip64) {
    for (size_t i = 0; i < count; i++) {
        entry *e = &entries[i];
        e->local = b->n;
        add_number(b, 0x04034B50, 4);
        add_fields(b, e, false);
        add(b, e->name, strlen(e->name));
        e->at = b->n;
        add(b, e->data, e->n);
        if (e->flags & 8) {
            add_number(b, 0x08074B50, 4);
            add_number(b, crc_by_definition(e->data, e->n), 4);
            add_number(b, e->n, 4);
            add_number(b, e->n, 4);
        }
    }
    const size_t begin = b->n;
    for (size_t i = 0; i < count; i++) {
        entry *e = &entries[i];
        e->central = b->n;
        add_number(b, 0x02014B50, 4);
        add_number(b, 20, 2);
        add_fields(b, e, true);
        add_number(b, 0, 8);
        add_number(b, 0, 2);
        add_number(b, e->local, 4);
        add(b, e->name, strlen(e->name));
    }
    const size_t end = b->n;
    if (zip64) {
        add_number(b, 0x06064B50, 4);
        add_number(b, 44, 8);
        add_number(b, 0x2D002D, 4);
        add_number(b, 0, 8);
        add_number(b, count, 8);
        add_number(b, count, 8);
        add_number(b, end - begin, 8);
        add_number(b, begin, 8);
        add_number(b, 0x07064B50, 4);
        add_number(b, 0, 4);
        add_number(b, end, 8);
        add_number(b, 1, 4);
    }
    add_number(b, 0x06054B50, 4);
    add_number(b, 0, 4);
    add_number(b, count, 2);
    add_number(b, count, 2);
    add_number(b, end - begin, 4);
    add_number(b, begin, 4);
    add_number(b, 0, 2);
}

static unsigned char numbers[24]; // 6 floats: 0 to 5

enum { PICKLE, ORDER, DATA, VERSION, ENTRIES };
static entry sample[ENTRIES];
static const char *const order_little = "little";

// A good file around a pickle.
static void put_zip(const bytes *pickle) {
    bytes b = {0};
    const entry entries[ENTRIES] = {
        {.name = "a/data.pkl", .data = pickle->data, .n = pickle->n, .flags = 8},
        {.name = "a/byteorder", .data = order_little, .n = 6},
        {.name = "a/data/0", .data = numbers, .n = 24, .flags = 0x808},
        {.name = "a/version", .data = "3\n", .n = 2}};
    memcpy(sample, entries, sizeof sample);
    add_zip(&b, sample, ENTRIES, true);
    disk_put(PATH, b.data, b.n);
    free(b.data);
}

static void put_program(const char *program) {
    bytes pickle = {0};
    assemble(&pickle, program);
    put_zip(&pickle);
    free(pickle.data);
}

#define OLDER_MAGIC  "80 02 8A 0A 6C FC 9C 46 F9 20 6A A8 50 19 . "
#define OLDER_START  OLDER_MAGIC "80 02 M=1001 . 80 02 } X=little_endian 88 s . "
#define OLDER_KEYS   "80 02 ] ( X=0 e . "
#define OLDER_FLOATS "( X=storage c=torch,FloatStorage X=0 X=cpu K=6 N t Q "
#define OLDER_TENSOR V2(OLDER_FLOATS, "0", "K=2 K=3 ", "K=3 K=1 ")
#define OLDER_GOOD   OLDER_START DICT("X=w " OLDER_TENSOR) " " OLDER_KEYS

// A file of the older format: pickles, then a storage of `n` bytes that says it has `count` numbers.
static void put_older(const char *program, uint64_t count, size_t n) {
    bytes b = {0};
    assemble(&b, program);
    add_number(&b, count, 8);
    add(&b, numbers, n);
    disk_put(PATH, b.data, b.n);
    free(b.data);
}

// >>checks

// Opens PATH, which has to be refused with this result and a sentence that names the file and has
// `text` in it, within the bound on memory, leaving nothing behind.
static void check_refused(const char *what, clnet_result expected, const char *text) {
    clnet_context *ctx = disk_context();
    const size_t before = memory.now;
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

// Opens PATH, which has to have `count` tensors, and a tensor `name` with these values.
static void check_floats(const char *what, size_t count, const char *name, size_t n,
                         const clnet_real *expected) {
    clnet_context *ctx = disk_context();
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    clnet_file_tensor t = {0};
    clnet_real values[64] = {0};
    CHECK(clnet_tensor_file_count(f) == count, "%s: %zu tensors: %s", what,
          clnet_tensor_file_count(f), clnet_error(ctx));
    CHECK(count == 0 ||
              (clnet_tensor_file_find(f, name, &t) && t.bytes == n * clnet_dtype_size(t.dtype) &&
               n <= 64 && clnet_tensor_file_read_real(f, &t, values) == CLNET_OK &&
               memcmp(values, expected, n * sizeof *values) == 0),
          "%s: %s has %llu bytes, %g %g ..: %s", what, name, (unsigned long long)t.bytes,
          (double)values[0], (double)values[1], clnet_error(ctx));
    CHECK((double)memory_peak() <= 2.0 * (double)disk_find(PATH)->size + 1048576,
          "%s: %zu bytes of memory", what, memory_peak());
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

static const clnet_real counted[6] = {0, 1, 2, 3, 4, 5};

// >>pickles that are refused

#define W(tensor)                  DICT("X=w " tensor)
#define SIX(first, shape, strides) W(V2(FLOATS, first, shape, strides))
#define J_MAX                      "J=2147483647 "

static const struct {
    const char *program;
    clnet_result result;
    const char *text;
} refused[] = {
    // names that are not those of a state dict, and names that look like them
    {"80 02 c=os,system ( X=true t R .", CLNET_ERROR_UNSUPPORTED,
     "opcode 0x63 GLOBAL: expected a name that a state dict of tensors needs, found "
     "\"os system\""},
    {"80 02 c=posix,system ( X=true t R .", CLNET_ERROR_UNSUPPORTED, "found \"posix system\""},
    {"80 02 c=builtins,eval ( X=1 t R .", CLNET_ERROR_UNSUPPORTED, "found \"builtins eval\""},
    {"80 02 c=__builtin__,getattr .", CLNET_ERROR_UNSUPPORTED, "getattr"},
    {"80 02 c=torch.nn.modules.conv,Conv2d ) R .", CLNET_ERROR_UNSUPPORTED,
     "whole pickled modules are not supported"},
    {"80 02 c=torch._utils,_rebuild_tensor_v22 .", CLNET_ERROR_UNSUPPORTED,
     "_rebuild_tensor_v22\""},
    {"80 02 c=torch._utils,_rebuild_tensor_v .", CLNET_ERROR_UNSUPPORTED, "_rebuild_tensor_v\""},
    {"80 02 c=torch._utils,_Rebuild_tensor_v2 .", CLNET_ERROR_UNSUPPORTED, "_Rebuild"},
    {"80 02 c 74 6F 72 63 68 00 0A 46 6C 6F 61 74 53 74 6F 72 61 67 65 0A .",
     CLNET_ERROR_UNSUPPORTED, "found \"torch\""},
    {"80 02 c 20 74 6F 72 63 68 0A 46 6C 6F 61 74 53 74 6F 72 61 67 65 0A .",
     CLNET_ERROR_UNSUPPORTED, "found \" torch FloatStorage\""},
    {"80 02 c 74 6F 72 63 68 20 0A 46 6C 6F 61 74 53 74 6F 72 61 67 65 0A .",
     CLNET_ERROR_UNSUPPORTED, "found \"torch  FloatStorage\""},
    {"80 02 c 74 6F 72 63 68 0A 46 6C 6F 61 74 53 74 6F 72 61 67 65 0D 0A .",
     CLNET_ERROR_UNSUPPORTED, "Storage?\""},
    {"80 02 c=torch\xe2\x80\xa4_utils,_rebuild_tensor_v2 .", CLNET_ERROR_UNSUPPORTED,
     "torch???_utils"}, // U+2024
    {"80 02 c=torch,QInt8Storage .", CLNET_ERROR_UNSUPPORTED, "QInt8Storage"},
    // the stack
    {"80 02 .", CLNET_ERROR_SYNTAX, "opcode 0x2e STOP: expected one value on the stack, found 0"},
    {"80 02 ( .", CLNET_ERROR_SYNTAX, "expected one value on the stack, found 1"},
    {"80 02 } } .", CLNET_ERROR_SYNTAX, "expected one value on the stack, found 2"},
    {"80 02 85 .", CLNET_ERROR_SYNTAX, "TUPLE1: expected 1 values, found nothing"},
    {"80 02 N 86 .", CLNET_ERROR_SYNTAX, "TUPLE2: expected 2 values, found nothing"},
    {"80 02 ( N N 87 .", CLNET_ERROR_SYNTAX, "TUPLE3: expected 3 values, found a mark"},
    {"80 02 t .", CLNET_ERROR_SYNTAX, "TUPLE: expected a mark as the beginning, found nothing"},
    {"80 02 N t .", CLNET_ERROR_SYNTAX, "expected a mark as the beginning, found nothing"},
    {"80 02 u .", CLNET_ERROR_SYNTAX, "SETITEMS: expected a mark as the beginning"},
    {"80 02 ( u .", CLNET_ERROR_SYNTAX, "expected a dictionary as what is added to, found nothing"},
    {"80 02 ] ( X=a N u .", CLNET_ERROR_SYNTAX,
     "expected a dictionary as what is added to, found a list"},
    {"80 02 } ( X=a u .", CLNET_ERROR_SYNTAX, "expected a value for each key, found a string"},
    {"80 02 } ( N N u .", CLNET_ERROR_SYNTAX,
     "expected a string or whole number as key, found None"},
    {"80 02 } ) N s .", CLNET_ERROR_SYNTAX,
     "SETITEM: expected a string or whole number as key, found a tuple"},
    {"80 02 } X=a s .", CLNET_ERROR_SYNTAX,
     "expected a dictionary as what is added to, found nothing"},
    {"80 02 } X=a ( s .", CLNET_ERROR_SYNTAX, "SETITEM: expected a value, found a mark"},
    {"80 02 N N a .", CLNET_ERROR_SYNTAX,
     "APPEND: expected a list as what is added to, found None"},
    {"80 02 ] ( a .", CLNET_ERROR_SYNTAX, "APPEND: expected a value, found a mark"},
    {"80 02 } ( N e .", CLNET_ERROR_SYNTAX,
     "APPENDS: expected a list as what is added to, found a dictionary"},
    {"80 02 ) b .", CLNET_ERROR_SYNTAX, "BUILD: expected a dictionary as state, found a tuple"},
    {"80 02 N } b .", CLNET_ERROR_SYNTAX,
     "BUILD: expected a dictionary as what gets it, found None"},
    {"80 02 R .", CLNET_ERROR_SYNTAX, "REDUCE: expected a tuple as arguments, found nothing"},
    {"80 02 N ) R .", CLNET_ERROR_SYNTAX, "REDUCE: expected a name as function, found None"},
    {"80 02 } ) R .", CLNET_ERROR_SYNTAX,
     "REDUCE: expected a name as function, found a dictionary"},
    {"80 02 c=torch,FloatStorage ) R .", CLNET_ERROR_SYNTAX,
     "REDUCE: no function with 0 arguments"},
    {"80 02 c=torch,uint16 ) R .", CLNET_ERROR_SYNTAX, "no function with 0 arguments"},
    {"80 02 c=torch._utils,_rebuild_tensor_v2 ) R .", CLNET_ERROR_SYNTAX,
     "no function with 0 arguments"},
    {"80 02 c=collections,OrderedDict N N 86 R .", CLNET_ERROR_SYNTAX,
     "no function with 2 arguments"},
    {"80 02 c=collections,OrderedDict N 85 R .", CLNET_ERROR_SYNTAX,
     "expected a list as an argument, found None"},
    {"80 02 c=collections,OrderedDict ] N a 85 R .", CLNET_ERROR_SYNTAX,
     "expected a list as a pair, found None"},
    {"80 02 c=collections,OrderedDict ] ] X=k a a 85 R .", CLNET_ERROR_SYNTAX,
     "expected pairs of two values"},
    {"80 02 c=collections,OrderedDict ] ] ( X=k N N e a 85 R .", CLNET_ERROR_SYNTAX,
     "expected pairs of two values"},
    {"80 02 c=collections,OrderedDict ] ] N a N a a 85 R .", CLNET_ERROR_SYNTAX,
     "whole number as key"},
    {"80 02 c=torch,Size N 85 R .", CLNET_ERROR_SYNTAX,
     "expected a tuple as an argument, found None"},
    {"80 02 c=torch._utils,_rebuild_parameter N N N 87 R .", CLNET_ERROR_SYNTAX,
     "expected a tensor as an argument"},
    {"80 02 c=torch._utils,_rebuild_tensor ( N N N N t R .", CLNET_ERROR_SYNTAX,
     "expected a storage as an argument"},
    {"80 02 c=torch._utils,_rebuild_tensor_v2 ( " FLOATS "N ) ) N N t R .", CLNET_ERROR_SYNTAX,
     "expected a whole number as an argument, found None"},
    {"80 02 c=torch._utils,_rebuild_tensor_v2 ( " FLOATS "K=0 N ) N N t R .", CLNET_ERROR_SYNTAX,
     "expected a tuple as an argument, found None"},
    {"80 02 c=torch._utils,_rebuild_tensor_v2 ( " FLOATS "K=0 ) } N N t R .", CLNET_ERROR_SYNTAX,
     "expected a tuple as an argument, found a dictionary"},
    // the memo
    {"80 02 h=0 .", CLNET_ERROR_SYNTAX, "BINGET: entry 0 of the memo, expected one below 0"},
    {"80 02 } q=0 j=1 .", CLNET_ERROR_SYNTAX,
     "LONG_BINGET: entry 1 of the memo, expected one below 1"},
    {"80 02 } j=4294967295 .", CLNET_ERROR_SYNTAX, "entry 4294967295 of the memo"},
    {"80 02 } r=4294967295 .", CLNET_ERROR_SYNTAX,
     "LONG_BINPUT: expected a value for an entry up to 0, found a dictionary for 4294967295"},
    {"80 02 } q=1 .", CLNET_ERROR_SYNTAX,
     "BINPUT: expected a value for an entry up to 0, found a dictionary for 1"},
    {"80 02 q=0 .", CLNET_ERROR_SYNTAX, "found nothing for 0"},
    {"80 02 ( q=0 .", CLNET_ERROR_SYNTAX, "found a mark for 0"},
    // beginning, end, arguments
    {"", CLNET_ERROR_TRUNCATED, "expected opcode 0x80 PROTO, found the pickle's end"},
    {"} .", CLNET_ERROR_SYNTAX, "expected opcode 0x80 PROTO, found another one"},
    {"80 03 } .", CLNET_ERROR_UNSUPPORTED, "PROTO: protocol 3, expected protocol 2 once"},
    {"80 04 95 00 00 00 00 00 00 00 00 } .", CLNET_ERROR_UNSUPPORTED, "protocol 4, expected"},
    {"80 02 80 02 } .", CLNET_ERROR_UNSUPPORTED, "protocol 2, expected protocol 2 once"},
    {"80", CLNET_ERROR_TRUNCATED,
     "PROTO: 1 bytes of argument, expected at most the 0 that are left"},
    {"80 02 }", CLNET_ERROR_TRUNCATED, "expected opcode '.' STOP, found the pickle's end"},
    {"80 02 } . 80 02 } .", CLNET_ERROR_SYNTAX, "bytes behind the pickle's STOP: 4, expected 0"},
    {"80 02 X 05 00 00 00 .", CLNET_ERROR_TRUNCATED,
     "BINUNICODE: 9 bytes of argument, expected at most the 5"},
    {"80 02 X FF FF FF FF .", CLNET_ERROR_TRUNCATED, "4294967299 bytes of argument"},
    {"80 02 X 05 00", CLNET_ERROR_TRUNCATED, "4 bytes of argument, expected at most the 2"},
    {"80 02 U 05 00", CLNET_ERROR_TRUNCATED, "SHORT_BINSTRING: 6 bytes of argument"},
    {"80 02 8A FF 00", CLNET_ERROR_TRUNCATED,
     "LONG1: 256 bytes of argument, expected at most the 2"},
    {"80 02 8A", CLNET_ERROR_TRUNCATED, "LONG1: 1 bytes of argument"},
    {"80 02 8B 00 CA 9A 3B .", CLNET_ERROR_UNSUPPORTED, "LONG4: expected one that state dicts"},
    {"80 02 L 31 31 31 31 0A .", CLNET_ERROR_UNSUPPORTED, "opcode 0x4c LONG"},
    {"80 02 c 74 6F 72 63 68 0A 46", CLNET_ERROR_TRUNCATED, "GLOBAL: 8 bytes of argument"},
    {"80 02 c", CLNET_ERROR_TRUNCATED, "GLOBAL: 1 bytes of argument"},
    {"80 02 X 01 00 00 00 FF .", CLNET_ERROR_ENCODING,
     "BINUNICODE: expected UTF-8, found byte 0xff"},
    {"80 02 U 02 C0 AF .", CLNET_ERROR_ENCODING, "expected UTF-8, found byte 0xc0"},
    // storages
    {"80 02 N Q .", CLNET_ERROR_SYNTAX,
     "BINPERSID: expected a tuple as a storage's description, found None"},
    {"80 02 ) Q .", CLNET_ERROR_SYNTAX, "expected a storage's description of 5 items, found 0"},
    {"80 02 ( X=module N N N N t Q .", CLNET_ERROR_UNSUPPORTED,
     "a whole pickled module, expected its state_dict()"},
    {"80 02 ( X=storage N X=0 X=cpu K=1 t Q .", CLNET_ERROR_SYNTAX,
     "expected a name as an argument, found None"},
    {"80 02 ( X=storage c=torch,FloatStorage K=0 X=cpu K=1 t Q .", CLNET_ERROR_SYNTAX,
     "expected a string as an argument"},
    {"80 02 ( X=storage c=torch,FloatStorage X=0 X=cpu X=1 t Q .", CLNET_ERROR_SYNTAX,
     "expected a whole number as an argument"},
    {"80 02 ( X=stored c=torch,FloatStorage X=0 X=cpu K=1 t Q .", CLNET_ERROR_UNSUPPORTED,
     "expected \"storage\", its type"},
    {"80 02 ( X=storage c=torch,Size X=0 X=cpu K=1 t Q .", CLNET_ERROR_UNSUPPORTED,
     "expected \"storage\", its type"},
    {"80 02 ( X=storage c=torch,FloatStorage X=0 X=cpu J=4294967295 t Q .", CLNET_ERROR_SHAPE,
     "count of numbers from 0 on, in 63 bits"},
    {"80 02 ( X=storage c=torch,FloatStorage X=0 X=cpu 8A 09 00 00 00 00 00 00 00 00 01 t Q .",
     CLNET_ERROR_SHAPE, "in 63 bits"},
    {"80 02 ( X=storage c=torch,FloatStorage X=0 X=cpu 8A 08 FF FF FF FF FF FF FF 7F t Q .",
     CLNET_ERROR_SHAPE, "in 63 bits"},
    {W(V2(STORAGE("torch,FloatStorage", "1", "6"), "0", "K=2 ", "K=1 ")), CLNET_ERROR_MISMATCH,
     "\"1\": storages of this key in the file: 0, expected 1"},
    {W(V2(STORAGE("torch,FloatStorage", "../data/0", "6"), "0", "K=2 ", "K=1 ")),
     CLNET_ERROR_MISMATCH, "\"../data/0\": storages of this key"},
    {W(V2(STORAGE("torch,FloatStorage", "0", "5"), "0", "K=2 ", "K=1 ")), CLNET_ERROR_OFFSETS,
     "\"w\": bytes of its storage: 24, expected 20"},
    {W(V2(STORAGE("torch,FloatStorage", "0", "7"), "0", "K=2 ", "K=1 ")), CLNET_ERROR_OFFSETS,
     "\"w\": bytes of its storage: 24, expected 28"},
    {W(V2(STORAGE("torch,DoubleStorage", "0", "6"), "0", "K=2 ", "K=1 ")), CLNET_ERROR_OFFSETS,
     "24, expected 48"},
    {W(V2(STORAGE("torch.storage,UntypedStorage", "0", "24"), "0", "K=2 ", "K=1 ")),
     CLNET_ERROR_DTYPE, "tensor w: a storage of bytes without a type"},
    // shapes and strides
    {SIX("0", "K=7 ", "K=1 "), CLNET_ERROR_OFFSETS,
     "\"w\": its last number stands outside its storage: 7, expected 6"},
    {SIX("1", "K=2 K=3 ", "K=3 K=1 "), CLNET_ERROR_OFFSETS,
     "its last number stands outside its storage: 7, expected 6"},
    {SIX("0", "K=2 K=3 ", "K=4 K=1 "), CLNET_ERROR_OFFSETS, "outside its storage: 7, expected 6"},
    {SIX("0", "K=6 ", "K=0 "), CLNET_ERROR_OFFSETS, "strides that overlap: numbers 6, expected 1"},
    {SIX("0", "K=2 K=3 ", "K=1 K=1 "), CLNET_ERROR_OFFSETS,
     "strides that overlap: numbers 6, expected 4"},
    {SIX("0", "K=2 ", "J=4294967295 "), CLNET_ERROR_SHAPE,
     "tensor w: expected a shape and strides of whole numbers from 0 to 2^48 - 1, found another "
     "one"},
    {SIX("0", "J=4294967294 ", "K=1 "), CLNET_ERROR_SHAPE, "found another one"},
    {SIX("0", "N ", "K=1 "), CLNET_ERROR_SHAPE, "found None"},
    {SIX("0", "K=2 ", "X=1 "), CLNET_ERROR_SHAPE, "found a string"},
    {SIX("0", "K=2 K=3 ", "K=1 "), CLNET_ERROR_SHAPE, "\"w\": strides: 1, expected 2"},
    {SIX("0", J_MAX J_MAX J_MAX, "K=1 K=1 K=1 "), CLNET_ERROR_SHAPE,
     "more bytes than 64 bits count"},
    {SIX("0", J_MAX "K=2 ", J_MAX J_MAX), CLNET_ERROR_OFFSETS, "outside its storage"},
    {SIX("0", "8A 06 FF FF FF FF FF 7F K=1 ", "8A 06 FF FF FF FF FF 7F K=1 "), CLNET_ERROR_SHAPE,
     "or its strides"},
    {SIX("0", "K=1 K=1 K=1 K=1 K=1 K=1 K=1 K=1 K=1 ", "K=1 K=1 K=1 K=1 K=1 K=1 K=1 K=1 K=1 "),
     CLNET_ERROR_LIMIT, "\"w\": axes: 9, expected 8"},
    {DICT("X=w c=torch._utils,_rebuild_tensor_v2 ( " FLOATS
          "J=4294967295 ( K=2 t ( K=1 t N N t R "),
     CLNET_ERROR_SHAPE, "or its first number is negative"},
    // what is no state dict
    {"80 02 N .", CLNET_ERROR_UNSUPPORTED, "expected a state dict, found None"},
    {"80 02 " TENSOR ".", CLNET_ERROR_UNSUPPORTED, "expected a state dict, found a tensor"},
    {"80 02 ] .", CLNET_ERROR_UNSUPPORTED, "expected a state dict, found a list"},
    {DICT("X=epoch K=3 "), CLNET_ERROR_UNSUPPORTED,
     "\"epoch\": expected a tensor, found a whole number"},
    {DICT("X=model } "), CLNET_ERROR_UNSUPPORTED,
     "\"model\": expected a tensor, found a dictionary"},
    {"80 02 } q=0 X=state_dict h=0 s .", CLNET_ERROR_UNSUPPORTED,
     "\"state_dict\": expected a tensor, found a dictionary"}, // itself
    {"80 02 } q=0 X=a ] q=1 h=1 a s .", CLNET_ERROR_UNSUPPORTED,
     "\"a\": expected a tensor, found a list"},
    {DICT("K=3 " TENSOR), CLNET_ERROR_ENCODING, "expected a name of at most 512 bytes"},
    {DICT("X 03 00 00 00 61 00 62 " TENSOR), CLNET_ERROR_ENCODING,
     "without control characters, found \"a\" of 3 bytes"},
    {DICT("X 02 00 00 00 61 07 " TENSOR), CLNET_ERROR_ENCODING, "found \"a?\" of 2 bytes"},
    {DICT("X=w " TENSOR "X=w " TENSOR), CLNET_ERROR_DUPLICATE,
     "tensor w: the name stands in the file twice"},
};

static void test_refused_pickles(void) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        put_program(refused[i].program);
        check_refused(refused[i].program, refused[i].result, refused[i].text);
    }
}

// >>pickles that are accepted

// Every opcode that is allowed stands in one of these.
static const struct {
    const char *program;
    size_t count, n;
    clnet_real first; // the first of the n numbers of w, which count up by 1
} accepted[] = {
    {"80 02 } .", 0, 0, 0},
    {"80 02 c=collections,OrderedDict ) R .", 0, 0, 0},
    {GOOD, 1, 6, 0},
    {SIX("2", "K=2 K=2 ", "K=2 K=1 "), 1, 4, 2},
    {SIX("5", "", ""), 1, 1, 5},
    {SIX("5", "K=1 K=1 ", "K=9 K=7 "), 1, 1, 5},
    {SIX("0", "K=0 K=3 ", "K=3 K=1 "), 1, 0, 0},
    {SIX("0", "M=6 ", "J=1 "), 1, 6, 0},
    {SIX("0", "8A 01 06 ", "8A 08 01 00 00 00 00 00 00 00 "), 1, 6, 0},
    {SIX("0", "K=6 8A 00 ", "K=1 K=1 "), 1, 0, 0}, // LONG1 without bytes is 0
    {"80 02 } X=w " TENSOR "s .", 1, 6, 0},
    {"80 02 } X=module.w " TENSOR "s .", 1, 6, 0},
    {"80 02 } ( X=epoch K=3 X=state_dict } X=w " TENSOR "s X=loss G 3F D0 00 00 00 00 00 00 u .", 1,
     6, 0},
    {"80 02 } ( X=tags ] ( N 88 e N a X=state_dict } X=w " TENSOR "s K=3 ] u .", 1, 6, 0},
    {"80 02 } X=w " TENSOR "s } X=_metadata } s b .", 1, 6, 0},
    {"80 02 } ( X=state_dict } X=w " TENSOR "r=0 s X=x N N N 87 q=1 X=y j=0 X=z h=1 u .", 1, 6, 0},
    {"80 02 c=collections,OrderedDict ] ] ( U=w " TENSOR "e a 85 R .", 1, 6, 0},
    {"80 02 c=collections,OrderedDict ] ( ] U=w a c=torch._utils,_rebuild_tensor ( ( U=storage "
     "c=torch,FloatStorage U=0 U=cpu K=6 t Q K=0 K=6 85 K=1 85 t R a e 85 R .",
     1, 6, 0},
    {W("c=torch._utils,_rebuild_parameter " TENSOR "88 c=collections,OrderedDict ) R 87 R "), 1, 6,
     0},
    {W("c=torch._utils,_rebuild_tensor_v2 ( " FLOATS
       "K=0 c=torch,Size ( K=6 t 85 R K=1 85 89 N t R "),
     1, 6, 0},
    {W("c=torch._utils,_rebuild_tensor_v2 ( " FLOATS "K=0 K=6 85 K=1 85 89 N } t R "), 1, 6, 0},
    {W("c=torch._utils,_rebuild_tensor_v2 ( " FLOATS "K=0 K=2 K=3 86 K=3 K=1 86 89 N t R "), 1, 6,
     0},
};

static void test_accepted_pickles(void) {
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        put_program(accepted[i].program);
        check_floats(accepted[i].program, accepted[i].count, "w", accepted[i].n,
                     counted + (size_t)accepted[i].first);
    }
}

// The opcodes of a pickle as the reader finds them, marked in `seen`.
static void mark_opcodes(const char *program, bool seen[256]) {
    bytes b = {0};
    assemble(&b, program);
    put_zip(&b);
    clnet_context *ctx = disk_context();
    clnet_tensor_file file = {.ctx = ctx, .path = (char *)(uintptr_t)PATH};
    clnet__pth p = {.f = &file, .text = b.data, .length = b.n};
    for (p.at = 0; p.at < b.n; p.at = p.next) {
        seen[b.data[p.at]] = true;
        if (!clnet__pickle_argument(&p, clnet__opcodes[b.data[p.at]].argument)) {
            CHECK(false, "%s: %s", program, clnet_error(ctx));
            break;
        }
    }
    clnet_context_destroy(ctx);
    free(b.data);
}

// All 256: used in a file that loads, or refused by name.
static void test_every_opcode(void) {
    // Python's protocols 0 to 5 have these, of which torch.save needs the first line.
    static const char needed[] =
        "80 . ( N 88 89 J K M 8A G X U ) 85 86 87 t ] a e } s u q r h j c R b Q";
    static const char others[] =
        "0 1 2 F I L P S T V B C d g i l o p 81 82 83 84 8B 8C 8D 8E 8F 90 91 92 93 94 95 96 97 98";
    bool seen[256] = {false}, allowed[256] = {false};
    bytes good = {0}, known = {0};
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        mark_opcodes(accepted[i].program, seen);
    }
    assemble(&good, needed);
    assemble(&known, others);
    for (size_t i = 0; i < good.n; i++) {
        allowed[good.data[i]] = true;
    }
    for (unsigned code = 0; code < 256; code++) {
        char program[40], text[40];
        CHECK(seen[code] == allowed[code], "opcode 0x%02x: %s", code,
              seen[code] ? "is used" : "stands in no file that loads");
        if (!allowed[code]) {
            const bool named = memchr(known.data, (int)code, known.n) != NULL;
            snprintf(program, sizeof program, "80 02 } %02X .", code);
            snprintf(text, sizeof text, "opcode 0x%02x %s", code, named ? "" : "(unknown)");
            put_program(program);
            check_refused(program, CLNET_ERROR_UNSUPPORTED, text);
        }
    }
    CHECK(good.n + known.n == 68, "%zu opcodes", good.n + known.n);
    free(good.data);
    free(known.data);
}

// >>zip files that are refused

enum { LOCAL, CENTRAL, BYTES, NAME, FROM_END };

static const struct {
    const char *what;
    int place, entry, offset, n; // which number of the file
    uint64_t value;
    clnet_result result;
    const char *text;
} patches[] = {
    {"comment", FROM_END, 0, -2, 2, 5, CLNET_ERROR_SYNTAX, "bytes of comment: 5, expected 0"},
    {"end magic", FROM_END, 0, -22, 4, 1, CLNET_ERROR_SYNTAX,
     "end record (in the last 22 bytes): magic 1, expected 101010256"},
    {"disk", FROM_END, 0, -18, 2, 1, CLNET_ERROR_SYNTAX, "disks: 1, expected 0"},
    {"entries of this disk", FROM_END, 0, -14, 2, 3, CLNET_ERROR_SYNTAX,
     "entries of this disk: 3, expected 4"},
    {"entries", FROM_END, 0, -14, 4, 0x30003, CLNET_ERROR_SYNTAX,
     "zip64: entries of this disk: 4, expected 3"},
    {"directory's size", FROM_END, 0, -10, 4, 1, CLNET_ERROR_SYNTAX,
     "zip64: bytes of the directory: 222, expected 1"},
    {"directory's place", FROM_END, 0, -6, 4, 1, CLNET_ERROR_SYNTAX,
     "zip64: directory at 363, expected 1"},
    {"locator's disk", FROM_END, 0, -38, 4, 1, CLNET_ERROR_SYNTAX, "zip64: disk 1, expected 0"},
    {"locator's place", FROM_END, 0, -34, 8, 7, CLNET_ERROR_SYNTAX,
     "zip64: its end record at 7, expected"},
    {"locator's disks", FROM_END, 0, -26, 4, 2, CLNET_ERROR_SYNTAX, "zip64: disks: 2, expected 1"},
    {"zip64's magic", FROM_END, 0, -98, 4, 1, CLNET_ERROR_SYNTAX, "zip64: magic 1"},
    {"zip64's size", FROM_END, 0, -94, 8, 45, CLNET_ERROR_SYNTAX,
     "zip64: bytes of its end record: 45, expected 44"},
    {"zip64's disks", FROM_END, 0, -82, 4, 1, CLNET_ERROR_SYNTAX, "zip64: disks: 1, expected 0"},
    {"zip64's entries of this disk", FROM_END, 0, -74, 8, 5, CLNET_ERROR_SYNTAX,
     "zip64: entries of this disk: 5, expected 4"},
    {"zip64's entries", FROM_END, 0, -66, 8, (uint64_t)1 << 40, CLNET_ERROR_SYNTAX,
     "zip64: entries: 1099511627776, expected 4"},
    {"zip64's directory, size", FROM_END, 0, -58, 8, (uint64_t)1 << 63, CLNET_ERROR_SYNTAX,
     "zip64: bytes of the directory:"},
    {"zip64's directory, place", FROM_END, 0, -50, 8, UINT64_MAX, CLNET_ERROR_SYNTAX,
     "zip64: directory at"},
    {"no locator", FROM_END, 0, -42, 4, 1, CLNET_ERROR_OFFSETS, "end of the directory:"},
    {"central magic", CENTRAL, 1, 0, 4, 1, CLNET_ERROR_SYNTAX, "magic 1, expected 33639248"},
    {"encrypted", CENTRAL, 1, 8, 2, 1, CLNET_ERROR_UNSUPPORTED,
     "\"a/byteorder\": encrypted: flags 1, expected"},
    {"patched data", CENTRAL, 1, 8, 2, 0x20, CLNET_ERROR_UNSUPPORTED,
     "\"a/byteorder\": flags 32, expected"},
    {"deflated", CENTRAL, 1, 10, 2, 8, CLNET_ERROR_UNSUPPORTED,
     "\"a/byteorder\": compressed: method 8, expected 0"},
    {"stored size", CENTRAL, 1, 20, 4, 5, CLNET_ERROR_UNSUPPORTED,
     "\"a/byteorder\": compressed: bytes 5, expected 6"},
    {"size", CENTRAL, 1, 24, 4, 5, CLNET_ERROR_UNSUPPORTED, "compressed: bytes 6, expected 5"},
    {"both sizes smaller", CENTRAL, 1, 20, 8, 0x500000005, CLNET_ERROR_SYNTAX,
     "local header: bytes stored 6, expected 5"},
    {"both sizes larger", CENTRAL, 2, 20, 8, 0x1900000019, CLNET_ERROR_OFFSETS,
     "\"a/data/0\": bytes before what follows: 15, expected 16"},
    {"both sizes huge", CENTRAL, 2, 20, 8, 0xFFFFFFFEFFFFFFFE, CLNET_ERROR_OFFSETS,
     "\"a/data/0\": overlaps what follows: bytes 4294967294"},
    {"sizes in a zip64 field that is not there", CENTRAL, 2, 20, 8, UINT64_MAX, CLNET_ERROR_OFFSETS,
     "\"a/data/0\": overlaps what follows: bytes 4294967295"},
    {"sum", CENTRAL, 1, 16, 4, 7, CLNET_ERROR_SYNTAX, "local header: CRC-32"},
    {"sum behind", CENTRAL, 2, 16, 4, 7, CLNET_ERROR_SYNTAX, "descriptor: CRC-32"},
    {"name's length", CENTRAL, 3, 28, 2, 65535, CLNET_ERROR_TRUNCATED,
     "bytes left for an entry: 55, expected 65581"},
    {"name's length", CENTRAL, 3, 28, 2, 8, CLNET_ERROR_OFFSETS,
     "bytes behind the directory's last entry: 1, expected 0"},
    {"no name", CENTRAL, 0, 28, 4, 0xA0000, CLNET_ERROR_SYNTAX,
     "\"\": not a relative path in UTF-8; its bytes: 0"},
    {"comment's length", CENTRAL, 3, 32, 2, 1, CLNET_ERROR_TRUNCATED,
     "bytes left for an entry: 55, expected 56"},
    {"disk of an entry", CENTRAL, 1, 34, 2, 1, CLNET_ERROR_SYNTAX, "disk 1, expected 0"},
    {"header's place", CENTRAL, 1, 42, 4, 1, CLNET_ERROR_OFFSETS,
     "\"a/data.pkl\": overlaps what follows: bytes"},
    {"header's place", CENTRAL, 0, 42, 4, 3, CLNET_ERROR_OFFSETS,
     "an overlap or a gap: begins at 3, expected 0"},
    {"name: absolute", NAME, 3, 0, 2, 0x612F, CLNET_ERROR_SYNTAX,
     "\"/aversion\": not a relative path"},
    {"name: ..", NAME, 3, 0, 3, 0x2F2E2E, CLNET_ERROR_SYNTAX, "\"../ersion\": not a relative path"},
    {"name: .", NAME, 3, 0, 2, 0x2F2E, CLNET_ERROR_SYNTAX, "\"./version\": not a relative path"},
    {"name: //", NAME, 3, 2, 1, '/', CLNET_ERROR_SYNTAX, "\"a//ersion\": not a relative path"},
    {"name: / at the end", NAME, 3, 8, 1, '/', CLNET_ERROR_SYNTAX,
     "\"a/versio/\": not a relative path"},
    {"name: backslash", NAME, 3, 1, 1, '\\', CLNET_ERROR_SYNTAX,
     "\"a\\version\": not a relative path"},
    {"name: zero byte", NAME, 3, 4, 1, 0, CLNET_ERROR_SYNTAX, "not a relative path in UTF-8"},
    {"name: not UTF-8", NAME, 3, 4, 1, 0xFF, CLNET_ERROR_SYNTAX, "not a relative path in UTF-8"},
    {"name: another one", NAME, 3, 4, 1, 'X', CLNET_ERROR_SYNTAX,
     "\"a/version\" in the local header, expected \"a/veXsion\""},
    {"local magic", LOCAL, 1, 0, 4, 1, CLNET_ERROR_SYNTAX,
     "local header: magic 1, expected 67324752"},
    {"local flags", LOCAL, 1, 6, 2, 8, CLNET_ERROR_SYNTAX, "local header: flags 8, expected 0"},
    {"local method", LOCAL, 1, 8, 2, 8, CLNET_ERROR_SYNTAX, "local header: method 8, expected 0"},
    {"local sum", LOCAL, 1, 14, 4, 8, CLNET_ERROR_SYNTAX, "local header: CRC-32 8, expected"},
    {"local sum of 0 without a descriptor", LOCAL, 1, 14, 4, 0, CLNET_ERROR_SYNTAX,
     "local header: CRC-32 0, expected"},
    {"local sizes", LOCAL, 1, 18, 4, 0, CLNET_ERROR_SYNTAX,
     "local header: bytes stored 0, expected 6"},
    {"local sizes", LOCAL, 2, 22, 4, 5, CLNET_ERROR_SYNTAX, "local header: bytes 5, expected 0"},
    {"local name's length", LOCAL, 1, 26, 2, 10, CLNET_ERROR_SYNTAX,
     "local header: bytes of the name 10, expected 11"},
    {"local extra", LOCAL, 1, 28, 2, 9999, CLNET_ERROR_OFFSETS,
     "\"a/byteorder\": overlaps what follows: bytes 6, expected 0"},
    {"local extra", LOCAL, 1, 28, 2, 1, CLNET_ERROR_OFFSETS,
     "\"a/byteorder\": overlaps what follows: bytes 6, expected 5"},
    {"a byte of an entry", BYTES, 2, 3, 1, 1, CLNET_ERROR_CHECKSUM, "\"a/data/0\": CRC-32"},
    {"descriptor's magic", BYTES, 2, 24, 4, 1, CLNET_ERROR_SYNTAX,
     "descriptor: magic 1, expected 134695760"},
    {"descriptor's sum", BYTES, 2, 28, 4, 1, CLNET_ERROR_SYNTAX, "descriptor: CRC-32 1, expected"},
    {"descriptor's stored size", BYTES, 2, 32, 4, 1, CLNET_ERROR_SYNTAX,
     "descriptor: bytes stored 1, expected 24"},
    {"descriptor's size", BYTES, 2, 36, 4, 1, CLNET_ERROR_SYNTAX,
     "descriptor: bytes 1, expected 24"},
};

static void test_refused_zips(void) {
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++) {
        put_program(GOOD);
        disk_file *f = disk_find(PATH);
        const entry *e = &sample[patches[i].entry];
        const size_t places[] = {e->local, e->central, e->at, e->central + 46, f->stored};
        clnet__store_bytes(f->data + places[patches[i].place] + patches[i].offset,
                           (size_t)patches[i].n, patches[i].value);
        check_refused(patches[i].what, patches[i].result, patches[i].text);
    }
}

// Makes a file of these entries.
static void put_entries(const entry *entries, size_t count, bool zip64) {
    entry copy[8];
    bytes b = {0};
    memcpy(copy, entries, count * sizeof *copy);
    add_zip(&b, copy, count, zip64);
    disk_put(PATH, b.data, b.n);
    free(b.data);
}

static void test_entries(void) {
    static char long_name[600] = "a/";
    bytes good = {0};
    assemble(&good, GOOD);
    memset(long_name + 2, 'n', sizeof long_name - 3);
    const entry pickle = {.name = "a/data.pkl", .data = good.data, .n = good.n};
    const entry data = {.name = "a/data/0", .data = numbers, .n = 24};
    const entry three[] = {pickle, data, data};
    put_entries(three, 3, false);
    check_refused("a name twice", CLNET_ERROR_DUPLICATE,
                  "\"a/data/0\": entries of this name: 2, expected 1");
    const entry two[] = {pickle, data, {.name = "b/data.pkl", .data = good.data, .n = good.n}};
    put_entries(two, 3, false);
    check_refused("two pickles", CLNET_ERROR_DUPLICATE,
                  "\"b/data.pkl\": pickles in the file: 2, expected 1");
    put_entries(&data, 1, true);
    check_refused("no pickle", CLNET_ERROR_SYNTAX, "entries of the name */data.pkl: 0, expected 1");
    const entry big[] = {pickle, data, {.name = "a/byteorder", .data = "big", .n = 3}};
    put_entries(big, 3, true);
    check_refused("big endian", CLNET_ERROR_UNSUPPORTED,
                  "byteorder: expected \"little\", found \"big\"");
    const entry other[] = {pickle, data, {.name = "a/byteorder", .data = "little\n", .n = 7}};
    put_entries(other, 3, true);
    check_refused("another byte order", CLNET_ERROR_UNSUPPORTED, "found \"little?\"");
    const entry script[] = {pickle, {.name = "a/code/m.py", .data = "", .n = 0}, data};
    put_entries(script, 3, true);
    check_refused("TorchScript", CLNET_ERROR_UNSUPPORTED, "a TorchScript archive is not supported");
    const entry constants[] = {pickle, {.name = "a/constants.pkl", .data = "", .n = 0}, data};
    put_entries(constants, 3, true);
    check_refused("TorchScript", CLNET_ERROR_UNSUPPORTED, "a TorchScript archive is not supported");
    const entry far[] = {pickle, data, {.name = long_name, .data = "", .n = 0}};
    put_entries(far, 3, true);
    check_refused("a long name", CLNET_ERROR_SYNTAX, "its bytes: 599, expected 512");
    const entry metadata[] = {
        pickle, data, {.name = "a/clnet.metadata", .data = "k\0v\0x", .n = 5}};
    put_entries(metadata, 3, true);
    check_refused("metadata", CLNET_ERROR_METADATA, "\"a/clnet.metadata\": not keys and values");
    const entry same[] = {
        pickle, data, {.name = "a/clnet.metadata", .data = "k\0v\0k\0v\0", .n = 8}};
    put_entries(same, 3, true);
    check_refused("metadata", CLNET_ERROR_DUPLICATE, "the key \"k\" stands in the metadata twice");
    const entry latin[] = {pickle, data, {.name = "a/clnet.metadata", .data = "k\0\xE9\0", .n = 4}};
    put_entries(latin, 3, true);
    check_refused("metadata", CLNET_ERROR_METADATA, "not keys and values in UTF-8");
    put_entries(three, 2, false);
    check_floats("without zip64, byteorder and version", 1, "w", 6, counted);
    put_entries(three, 0, false);
    check_refused("no entries", CLNET_ERROR_TRUNCATED, "a header of 101010256 bytes is announced");
    free(good.data);
}

// A second end record in a comment, as programs that search for it would find it.
static void test_fake_end(void) {
    bytes b = {0};
    put_program(GOOD);
    const disk_file *f = disk_find(PATH);
    add(&b, f->data, f->stored);
    clnet__store_bytes(b.data + b.n - 2, 2, 22);
    add(&b, f->data + f->stored - 22, 22);
    disk_put(PATH, b.data, b.n);
    check_refused("a fake end record", CLNET_ERROR_OFFSETS, "end of the directory:");
    b.data[b.n - 2] = 1;
    disk_put(PATH, b.data, b.n);
    check_refused("a comment in a comment", CLNET_ERROR_SYNTAX, "bytes of comment: 1, expected 0");
    free(b.data);
}

// >>the older format

#define OLDER(items) OLDER_START DICT(items) " " OLDER_KEYS

static const struct {
    const char *program;
    uint64_t count;
    size_t n;
    clnet_result result;
    const char *text;
} older_refused[] = {
    {OLDER_MAGIC "80 02 M=1002 . 80 02 N .", 6, 24, CLNET_ERROR_UNSUPPORTED,
     "byte 0: a pickle, but expected one that begins as torch.save"},
    {"80 02 } q=0 X=w N s .", 6, 24, CLNET_ERROR_UNSUPPORTED, "byte 0: a pickle, but expected"},
    {"80 04 95 0B 00 00 00 00 00 00 00 } .", 6, 24, CLNET_ERROR_UNSUPPORTED,
     "byte 0: a pickle, but expected"},
    {OLDER_MAGIC "80 02 M=1001 . 80 02 } X=little_endian 89 s . ", 6, 24, CLNET_ERROR_UNSUPPORTED,
     "expected \"little_endian\": True, found False"},
    {OLDER_MAGIC "80 02 M=1001 . 80 02 } . ", 6, 24, CLNET_ERROR_UNSUPPORTED,
     "\"little_endian\": True, found nothing"},
    {OLDER_MAGIC "80 02 M=1001 . 80 02 N . ", 6, 24, CLNET_ERROR_UNSUPPORTED,
     "\"little_endian\": True, found nothing"},
    {OLDER_START "80 02 c=os,system ( X=true t R . " OLDER_KEYS, 6, 24, CLNET_ERROR_UNSUPPORTED,
     "found \"os system\""},
    {OLDER_START "80 02 c=__main__,Net ) 81 . " OLDER_KEYS, 6, 24, CLNET_ERROR_UNSUPPORTED,
     "whole pickled modules are not supported"},
    {OLDER_START "80 02 ( X=module c=collections,OrderedDict N N t Q . " OLDER_KEYS, 6, 24,
     CLNET_ERROR_UNSUPPORTED, "a whole pickled module"},
    {OLDER(TENSOR), 6, 24, CLNET_ERROR_SYNTAX,
     "expected a storage's description of 6 items, found 5"},
    {OLDER("X=w " V2("( X=storage c=torch,FloatStorage X=0 X=cpu K=6 ) t Q ", "0", "K=6 ", "K=1 ")),
     6, 24, CLNET_ERROR_UNSUPPORTED, "no other storage behind it"},
    {OLDER_START DICT("X=w " OLDER_TENSOR) " 80 02 } .", 6, 24, CLNET_ERROR_SYNTAX,
     "expected a list of storage keys, found a dictionary"},
    {OLDER_START DICT("X=w " OLDER_TENSOR) " 80 02 ] .", 6, 24, CLNET_ERROR_OFFSETS,
     "bytes behind the last storage: 32, expected 0"},
    {OLDER_START DICT("X=w " OLDER_TENSOR) " 80 02 ] N a .", 6, 24, CLNET_ERROR_MISMATCH,
     "\"\": storages of this key"},
    {OLDER_START DICT("X=w " OLDER_TENSOR) " 80 02 ] X=1 a .", 6, 24, CLNET_ERROR_MISMATCH,
     "\"1\": storages of this key in the pickle or in the list of keys: 0"},
    {OLDER_START DICT("X=w " OLDER_TENSOR) " 80 02 ] ( X=0 X=0 e .", 6, 24, CLNET_ERROR_DUPLICATE,
     "\"0\": storages of this key in the pickle or in the list of keys: 2"},
    {OLDER("X=w " OLDER_TENSOR
           "X=v " V2("( X=storage c=torch,FloatStorage X=0 X=cpu K=5 N t Q ", "0", "K=2 ", "K=1 ")),
     6, 24, CLNET_ERROR_OFFSETS, "\"0\": bytes of a storage:"},
    {OLDER("X=w " OLDER_TENSOR
           "X=v " V2("( X=storage c=torch,LongStorage X=0 X=cpu K=3 N t Q ", "0", "K=2 ", "K=1 ")),
     6, 24, CLNET_ERROR_OFFSETS, "\"0\": bytes of a storage: 24, expected 24"},
    {OLDER_GOOD, 5, 24, CLNET_ERROR_OFFSETS, "\"0\": numbers in a storage: 5, expected 6"},
    {OLDER_GOOD, UINT64_MAX, 24, CLNET_ERROR_OFFSETS,
     "numbers in a storage: 18446744073709551615, expected 6"},
    {OLDER_GOOD, 6, 23, CLNET_ERROR_TRUNCATED, "\"0\": bytes left for a storage: 31, expected 32"},
    {OLDER_GOOD " 00", 6, 24, CLNET_ERROR_OFFSETS, "numbers in a storage: 1536, expected 6"},
    {OLDER_START DICT("X=w " OLDER_TENSOR), 6, 24, CLNET_ERROR_SYNTAX,
     "expected opcode 0x80 PROTO, found another one"},
    {OLDER_START DICT("") " " OLDER_KEYS, 6, 24, CLNET_ERROR_MISMATCH,
     "\"0\": storages of this key"},
};

static void test_older(void) {
    for (size_t i = 0; i < sizeof older_refused / sizeof *older_refused; i++) {
        put_older(older_refused[i].program, older_refused[i].count, older_refused[i].n);
        check_refused(older_refused[i].program, older_refused[i].result, older_refused[i].text);
    }
    put_older(OLDER_GOOD, 6, 24);
    check_floats("the older format", 1, "w", 6, counted);
    put_older(OLDER("X=state_dict } X=module.w " OLDER_TENSOR "s "), 6, 24);
    check_floats("the older format, wrapped", 1, "w", 6, counted);
    char *tar = calloc(1, 1024);
    memcpy(tar, "sys_info", 8);
    memcpy(tar + 257, "ustar", 5);
    disk_put(PATH, tar, 1024);
    check_refused("tar", CLNET_ERROR_UNSUPPORTED, "a tar archive is not supported");
    memcpy(tar + 257, "other", 5);
    disk_put(PATH, tar, 1024);
    check_refused("neither", CLNET_ERROR_TRUNCATED, "bytes is announced, expected at most");
    free(tar);
}

// >>mutations

// Opens the mutated file; what it then holds has to be read and written anew. True: it was accepted.
static bool try_mutation(clnet_context *ctx) {
    static unsigned char data[4][64];
    clnet_file_item items[4] = {{0}};
    const size_t before = memory.now;
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    const size_t count = clnet_tensor_file_count(f);
    for (size_t i = 0; i < count && i < 4; i++) {
        clnet_file_tensor t = {0};
        clnet_tensor_file_at(f, i, &t);
        items[i] =
            (clnet_file_item){.name = t.name, .dtype = t.dtype, .rank = t.rank, .data = data[i]};
        memcpy(items[i].shape, t.shape, sizeof t.shape);
        if (t.bytes > 64 || clnet_tensor_file_read(f, &t, data[i]) != CLNET_OK) {
            CHECK(false, "%llu bytes: %s", (unsigned long long)t.bytes, clnet_error(ctx));
        }
    }
    if (f != NULL && clnet_safetensors_write(ctx, "copy", items, count, NULL, 0) != CLNET_OK) {
        CHECK(false, "cannot be written anew: %s", clnet_error(ctx));
    }
    if (f == NULL && (clnet_context_result(ctx) == CLNET_OK ||
                      strncmp(clnet_error(ctx), PATH, strlen(PATH)) != 0)) {
        CHECK(false, "result %d: %s", (int)clnet_context_result(ctx), clnet_error(ctx));
    }
    clnet_tensor_file_close(f);
    clnet_context_clear(ctx);
    if (memory.now != before) {
        CHECK(false, "%zu bytes are left", memory.now - before);
    }
    return f != NULL;
}

// Every change of one byte and every length of the file at PATH.
static void check_mutations(const char *what, long least_accepted) {
    clnet_context *ctx = disk_context();
    disk_file *f = disk_find(PATH);
    const size_t size = f->stored;
    long accepted_count = 0, refused_count = 0;
    CHECK(try_mutation(ctx), "%s: the file itself is refused", what);
    for (size_t i = 0; i < size; i++) {
        const unsigned char kept = f->data[i];
        for (int change = 1; change < 256; change++) {
            f->data[i] = (unsigned char)(kept ^ change);
            const bool ok = try_mutation(ctx);
            accepted_count += ok;
            refused_count += !ok;
        }
        f->data[i] = kept;
    }
    CHECK(accepted_count >= least_accepted && refused_count > accepted_count,
          "%s: %ld accepted, %ld refused", what, accepted_count, refused_count);
    for (f->size = 0; f->size < size; f->size++) {
        f->stored = (size_t)f->size;
        CHECK(!try_mutation(ctx), "%s: cut to %d bytes it is accepted", what, (int)f->size);
    }
    clnet_context_destroy(ctx);
}

// Every change of one byte of a zip file's pickle, with sums that fit.
static void check_pickle_mutations(const bytes *good) {
    clnet_context *ctx = disk_context();
    bytes changed = {0};
    long accepted_count = 0;
    add(&changed, good->data, good->n);
    for (size_t i = 0; i < good->n; i++) {
        for (int change = 1; change < 256; change++) {
            changed.data[i] = (unsigned char)(good->data[i] ^ change);
            put_zip(&changed);
            accepted_count += try_mutation(ctx);
        }
        changed.data[i] = good->data[i];
    }
    CHECK(accepted_count > 100, "pickle: %ld accepted", accepted_count); // names, "cpu", hooks
    free(changed.data);
    clnet_context_destroy(ctx);
}

static void test_mutations(void) {
    bytes good = {0};
    assemble(&good, DICT("X=w " V2(FLOATS, "0", "K=3 K=2 ", "K=1 K=3 ")));
    const entry two[] = {{.name = "a/data.pkl", .data = good.data, .n = good.n},
                         {.name = "a/data/0", .data = numbers, .n = 24, .flags = 8}};
    put_entries(two, 2, true);
    check_mutations("zip", 100); // versions, times, attributes
    put_older(OLDER("X=w " V2(OLDER_FLOATS, "0", "K=3 K=2 ", "K=1 K=3 ")), 6, 24);
    check_mutations("older", 24 * 255); // the numbers
    check_pickle_mutations(&good);
    free(good.data);
}

// >>limits

// Opens what is at PATH within the bounds on memory and time; it may be refused, by a limit.
static void check_bounds(const char *what, bool accept) {
    clnet_context *ctx = disk_context();
    const double size = (double)disk_find(PATH)->size, start = seconds_now();
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    const double seconds = seconds_now() - start;
    CHECK((f != NULL) == accept && (accept || clnet_context_result(ctx) == CLNET_ERROR_LIMIT),
          "%s: %s", what, clnet_error(ctx));
    CHECK((double)memory_peak() <= 2 * size + 1048576, "%s: %zu bytes of memory for a file of %.0f",
          what, memory_peak(), size);
    CHECK(seconds < 0.5 * SLOWER, "%s: %.2f s", what, seconds);
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

// A pickle that repeats a few opcodes.
static void put_repeated(const char *before, const char *repeated, int times, const char *behind) {
    bytes b = {0}, part = {0};
    assemble(&b, before);
    assemble(&part, repeated);
    for (int i = 0; i < times; i++) {
        add(&b, part.data, part.n);
    }
    assemble(&b, behind);
    put_zip(&b);
    free(part.data);
    free(b.data);
}

// As many tensors as allowed, of 64 numbers each, in either format.
static void put_many(int count, bool zip) {
    bytes pickle = {0}, keys = {0}, all = {0};
    static const float values[64] = {0};
    entry *entries = calloc((size_t)count + 1, sizeof *entries);
    char(*names)[24] = calloc((size_t)count, sizeof *names);
    assemble(&pickle, "80 02 } (");
    assemble(&keys, "80 02 ] (");
    for (int i = 0; i < count; i++) {
        char text[400];
        snprintf(
            text, sizeof text,
            "X=%x c=torch._utils,_rebuild_tensor_v2 q=0 ( ( X=storage q=0 c=torch,FloatStorage "
            "q=0 X=%d X=cpu q=0 K=64 %s t q=0 Q K=0 K=8 K=8 86 q=0 K=8 K=1 86 q=0 89 "
            "c=collections,OrderedDict q=0 ) R q=0 t q=0 R q=0",
            (unsigned)i, i, zip ? "" : "N");
        assemble(&pickle, text);
        snprintf(text, sizeof text, "X=%d", i);
        assemble(&keys, text);
        snprintf(names[i], sizeof names[i], "a/data/%d", i);
        entries[i + 1] = (entry){.name = names[i], .data = values, .n = sizeof values};
    }
    assemble(&pickle, "u .");
    assemble(&keys, "e .");
    if (zip) {
        entries[0] = (entry){.name = "a/data.pkl", .data = pickle.data, .n = pickle.n};
        add_zip(&all, entries, (size_t)count + 1, true);
        const size_t ends[] = {14, 12}; // of the end record: zip64 has the numbers
        for (int i = 0; count >= 65535 && i < 2; i++) {
            clnet__store_bytes(all.data + all.n - ends[i], 2, 65535);
        }
    } else {
        assemble(&all, OLDER_START);
        add(&all, pickle.data, pickle.n);
        add(&all, keys.data, keys.n);
        for (int i = 0; i < count; i++) {
            add_number(&all, 64, 8);
            add(&all, values, sizeof values);
        }
    }
    disk_put(PATH, all.data, all.n);
    free(all.data);
    free(keys.data);
    free(pickle.data);
    free(names);
    free(entries);
}

static void test_limits(void) {
    static const struct {
        const char *what, *before, *repeated, *behind;
        int times;
    } many[] = {
        {"empty tuples", "80 02", ")", ".", 4000000},
        {"marks", "80 02", "(", ".", 4000000},
        {"dictionaries", "80 02", "}", ".", 4000000},
        {"nested lists", "80 02 ]", "q=0 ] h=0 a", ".", 1000000},
        {"nested tuples", "80 02 )", "85", "85 .", 4000000},
        {"fetched values", "80 02 } q=0", "h=0", ".", 2000000},
        {"a large tuple", "80 02 } (", ")", "t .", 900000},
        {"small tuples", "80 02 } (", "( t", "t .", 900000},
        {"empty dictionaries as values", "80 02 } (", "K=0 }", "u .", 900000},
        {"one name over and over", "80 02 } X=w q=0 " TENSOR "q=1 s } (", "h=0 h=1", "u .", 300000},
        {"pairs over and over", "80 02 ] ( ] X=a a N a q=0 h=0 h=0 h=0 h=0 h=0 h=0 h=0 h=0 e q=1 (",
         "c=collections,OrderedDict h=1 85 R", "t .", 100000},
    };
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        put_repeated(many[i].before, many[i].repeated, many[i].times, many[i].behind);
        check_bounds(many[i].what, false);
    }
    put_many(65536, true);
    check_bounds("65,536 tensors in a zip file", true);
    put_many(65536, false);
    check_bounds("65,536 tensors in the older format", true);
    put_many(65537, false);
    check_bounds("65,537 tensors", false);
    put_many(100000, true);
    check_bounds("100,000 entries", false);
}

// Large entries, and names, one more than is allowed.
static void test_caps(void) {
    enum { LARGE = CLNET_FILE_MAX_HEADER + 1, PAIRS = CLNET_FILE_MAX_TENSORS + 1 };
    char *zeros = calloc(LARGE, 1);
    bytes good = {0}, values = {0}, older = {0};
    put_entries(&(entry){.name = "a/data.pkl", .data = zeros, .n = LARGE}, 1, true);
    check_refused("a pickle", CLNET_ERROR_LIMIT, "bytes of pickle: 16777217, expected 16777216");

    assemble(&good, GOOD);
    entry entries[] = {{.name = "a/data.pkl", .data = good.data, .n = good.n},
                       {.name = "a/data/0", .data = numbers, .n = 24},
                       {.name = "a/clnet.metadata", .data = zeros, .n = LARGE}};
    put_entries(entries, 3, true);
    check_refused("metadata", CLNET_ERROR_LIMIT, "bytes of metadata: 16777217, expected 16777216");
    entries[2].n = (size_t)2 * PAIRS; // empty keys and values
    put_entries(entries, 3, true);
    check_refused("pairs", CLNET_ERROR_LIMIT, "pairs: 65537, expected 65536");

    assemble(&values, "80 02");
    for (int i = 0; i <= CLNET_PICKLE_MAX_VALUES; i++) {
        add(&values, "N", 1);
    }
    assemble(&values, ".");
    entries[0] = (entry){.name = "a/data.pkl", .data = values.data, .n = values.n};
    entries[2].n = LARGE; // so much file that memory is no limit
    put_entries(entries, 3, true);
    check_refused("values", CLNET_ERROR_LIMIT, "more values than the 1048576 accepted");

    assemble(&older, OLDER_START "80 02 } X=w c=torch._utils,_rebuild_tensor_v2 ( ( X=storage "
                                 "c=torch,FloatStorage");
    memset(zeros, 'k', CLNET_FILE_MAX_NAME + 1);
    add_number(&older, 'X', 1);
    add_number(&older, CLNET_FILE_MAX_NAME + 1, 4);
    add(&older, zeros, CLNET_FILE_MAX_NAME + 1);
    assemble(&older, "X=cpu K=6 N t Q K=0 ( K=2 K=3 t ( K=3 K=1 t 89 c=collections,OrderedDict ) R "
                     "t R s . ");
    disk_put(PATH, older.data, older.n);
    check_refused("a key", CLNET_ERROR_LIMIT, "a key of 513 bytes, expected at most 512");
    free(older.data);
    free(values.data);
    free(good.data);
    free(zeros);
}

// Numbers of 8 bytes come as they are in the file; as numbers of the library where those have 8 too.
static void test_double_storage(void) {
    static const double wide[] = {1.0 / 3, -0.0, 1e300};
    unsigned char kept[sizeof numbers];
    memcpy(kept, numbers, sizeof numbers);
    memcpy(numbers, wide, sizeof wide);
    for (int older = 0; older < 2; older++) {
        if (older) {
            put_older(OLDER("X=w " V2("( X=storage c=torch,DoubleStorage X=0 X=cpu K=3 N t Q ", "0",
                                      "K=3 ", "K=1 ")),
                      3, 24);
        } else {
            put_program(W(V2(STORAGE("torch,DoubleStorage", "0", "3"), "0", "K=3 ", "K=1 ")));
        }
        clnet_context *ctx = disk_context();
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
        clnet_file_tensor t = {0};
        double raw[3];
        clnet_real values[3];
        CHECK(clnet_tensor_file_find(f, "w", &t) && t.dtype == CLNET_F64 && t.bytes == 24 &&
                  clnet_tensor_file_read(f, &t, raw) == CLNET_OK && !memcmp(raw, wide, 24),
              "older %d: %s", older, clnet_error(ctx));
        const bool same = clnet_tensor_file_read_real(f, &t, values) == CLNET_OK &&
                          memcmp(values, wide, sizeof values) == 0;
        CHECK(sizeof(clnet_real) == 8 ? same : clnet_context_result(ctx) == CLNET_ERROR_DTYPE,
              "older %d: %g %g: %s", older, (double)values[0], (double)values[2], clnet_error(ctx));
        clnet_tensor_file_close(f);
        clnet_context_destroy(ctx);
    }
    memcpy(numbers, kept, sizeof numbers);
}

// >>failures

// Every call of the disk, and every allocation, fails once while a file is opened and read.
static void check_failures(const char *what, bool on_disk) {
    int n = 0;
    bool done = false;
    while (!done && n < 200) {
        clnet_context *ctx = disk_context();
        const size_t before = memory.now;
        clnet_file_tensor t = {0};
        clnet_real values[6];
        memory.calls = 0;
        *(on_disk ? &disk.fail_at : &memory.fail_at) = ++n;
        clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
        done = clnet_tensor_file_find(f, "w", &t) &&
               clnet_tensor_file_read_real(f, &t, values) == CLNET_OK;
        CHECK(done ||
                  clnet_context_result(ctx) == (on_disk ? CLNET_ERROR_FILE : CLNET_ERROR_MEMORY),
              "%s: call %d: %s", what, n, clnet_error(ctx));
        clnet_tensor_file_close(f);
        CHECK(memory.now == before && disk.open == 0, "%s: call %d: something is left", what, n);
        clnet_context_destroy(ctx);
    }
    CHECK(done && n > 6, "%s: %d calls", what, n);
}

static void test_failures(void) {
    for (int turn = 0; turn < 2; turn++) {
        put_program(SIX("0", "K=3 K=2 ", "K=1 K=3 "));
        check_failures("zip", turn == 0);
        put_older(OLDER("X=w " V2(OLDER_FLOATS, "0", "K=3 K=2 ", "K=1 K=3 ")), 6, 24);
        check_failures("older", turn == 0);
    }
}

// >>writing

static const unsigned char written[64] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
static char very_long_name[513];

// Tensors of every type: the shape (2,0,3), (2,2) or none.
static size_t every_item(clnet_file_item items[CLNET_DTYPE_COUNT + 2], char names[][16]) {
    for (int i = 0; i < CLNET_DTYPE_COUNT; i++) {
        snprintf(names[i], 16, "t.%d", i);
        items[i] = (clnet_file_item){
            .name = names[i], .dtype = (clnet_dtype)i, .rank = 2, .shape = {2, 2}, .data = written};
    }
    items[CLNET_DTYPE_COUNT] = (clnet_file_item){.name = "empty", .rank = 3, .shape = {2, 0, 3}};
    memset(very_long_name, 'n', 512);
    items[CLNET_DTYPE_COUNT + 1] =
        (clnet_file_item){.name = very_long_name, .dtype = CLNET_I64, .data = written};
    return CLNET_DTYPE_COUNT + 2;
}

static void test_written(void) {
    static const clnet_file_pair pairs[2] = {{"b", ""}, {"a", "\xc3\xa9\n"}};
    clnet_file_item items[CLNET_DTYPE_COUNT + 2];
    char names[CLNET_DTYPE_COUNT][16];
    const size_t count = every_item(items, names);
    clnet_context *ctx = disk_context();
    CHECK(clnet_pth_write(ctx, PATH, items, count, pairs, 2) == CLNET_OK, "%s", clnet_error(ctx));
    bytes first = {0};
    add(&first, disk_find(PATH)->data, disk_find(PATH)->stored);
    const clnet_file_item swapped = items[0];
    items[0] = items[3];
    items[3] = swapped;
    const clnet_file_pair back[2] = {pairs[1], pairs[0]};
    CHECK(clnet_pth_write(ctx, PATH, items, count, back, 2) == CLNET_OK &&
              disk_find(PATH)->stored == first.n &&
              memcmp(disk_find(PATH)->data, first.data, first.n) == 0,
          "the same tensors in another order give other bytes: %s", clnet_error(ctx));
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, PATH);
    CHECK(clnet_tensor_file_count(f) == count, "%s", clnet_error(ctx));
    for (size_t i = 0; i < count; i++) {
        clnet_file_tensor t = {0};
        unsigned char read[64] = {0};
        CHECK(clnet_tensor_file_find(f, items[i].name, &t) && t.dtype == items[i].dtype &&
                  t.rank == items[i].rank && memcmp(t.shape, items[i].shape, sizeof t.shape) == 0 &&
                  t.offset % 64 == 0 && clnet_tensor_file_read(f, &t, read) == CLNET_OK &&
                  memcmp(read, written, (size_t)t.bytes) == 0,
              "%s: %s", items[i].name, clnet_error(ctx));
    }
    const char *a = clnet_tensor_file_metadata(f, "a"), *b = clnet_tensor_file_metadata(f, "b");
    CHECK(a != NULL && strcmp(a, pairs[1].value) == 0 && b != NULL && *b == 0, "metadata");
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
    free(first.data);
}

static clnet_result fill_fails(void *user, void *data) {
    (void)user;
    (void)data;
    return CLNET_ERROR_DEVICE;
}

// What cannot be written leaves the old file as it is.
static void check_not_written(const clnet_file_item *items, size_t count, clnet_result expected,
                              const char *text) {
    clnet_context *ctx = disk_context();
    disk_put("out", "old", 3);
    CHECK(clnet_pth_write(ctx, "out", items, count, NULL, 0) == expected &&
              strstr(clnet_error(ctx), text) != NULL && disk_find("out")->stored == 3 &&
              disk_find("out.tmp") == NULL && disk.open == 0,
          "\"%s\" should say \"%s\"", clnet_error(ctx), text);
    clnet_context_destroy(ctx);
}

static void test_not_written(void) {
    enum { MOST = 65531 };
    clnet_file_item *items = calloc(MOST, sizeof *items);
    char(*names)[16] = calloc(MOST, sizeof *names);
    for (int i = 0; i < MOST; i++) {
        snprintf(names[i], sizeof names[i], "%d", i);
        items[i] = (clnet_file_item){.name = names[i], .dtype = CLNET_U8, .data = written};
    }
    check_not_written(items, MOST, CLNET_ERROR_LIMIT, "more tensors than 65,530");
    items[0].data = NULL;
    items[0].fill = fill_fails;
    check_not_written(items, 2, CLNET_ERROR_DEVICE, "tensor 0: its values are not to be had");
    items[0] = items[1];
    check_not_written(items, 2, CLNET_ERROR_DUPLICATE, "tensor 1: the name is given twice");
    // Every call of the disk and every allocation fails once.
    for (int turn = 0; turn < 2; turn++) {
        clnet_result result = CLNET_ERROR_FILE;
        for (int n = 1; result != CLNET_OK && n < 100; n++) {
            const clnet_file_pair pair = {"k", "v"};
            clnet_context *ctx = disk_context();
            disk_put("out", "old", 3);
            memory.calls = 0;
            *(turn == 0 ? &disk.fail_at : &memory.fail_at) = n;
            result = clnet_pth_write(ctx, "out", items + 1, 2, &pair, 1);
            CHECK(result == CLNET_OK
                      ? n > 5 && disk_find("out")->stored > 3
                      : result == (turn == 0 ? CLNET_ERROR_FILE : CLNET_ERROR_MEMORY) &&
                            disk_find("out")->stored == 3,
                  "call %d: %s", n, clnet_error(ctx));
            CHECK(disk_find("out.tmp") == NULL && disk.open == 0, "call %d: something is left", n);
            clnet_context_destroy(ctx);
        }
    }
    free(names);
    free(items);
}

// >>real files

// A pickle that runs a command where Python loads it: refused, and nothing is run.
static void test_command(const char *folder) {
    static const char *const functions[] = {"os,system", "posix,system", "nt,system"};
    char path[300], program[600];
    snprintf(path, sizeof path, "%s/clnet-test-pth-ran", folder);
    for (int i = 0; i < 6; i++) {
        char call[400];
        snprintf(call, sizeof call, "80 02 c=%s ( X 00 01 00 00", functions[i % 3]);
        bytes b = {0};
        if (i >= 3) {
            assemble(&b, OLDER_START);
        }
        assemble(&b, call);
        snprintf(program, sizeof program, "touch %-250s", path); // 256 bytes
        add(&b, program, 256);
        assemble(&b, i >= 3 ? "t R . " OLDER_KEYS : "t R .");
        if (i >= 3) {
            disk_put(PATH, b.data, b.n);
        } else {
            put_zip(&b);
        }
        check_refused(functions[i % 3], CLNET_ERROR_UNSUPPORTED, " system\"");
        CHECK(access(path, F_OK) != 0, "%s: the command was run", functions[i % 3]);
        free(b.data);
    }
}

// The tensors of a file that PyTorch wrote are those that stand under its name in `expected`.
static void check_real(const char *folder, const char *name, clnet_tensor_file *expected) {
    char path[400], key[100];
    size_t wanted = 0;
    clnet_file_tensor t = {0}, e = {0};
    clnet_context *ctx = clnet_context_create(NULL);
    snprintf(path, sizeof path, "%s/%s.pth", folder, name);
    clnet_tensor_file *f = clnet_tensor_file_open(ctx, path);
    for (size_t i = 0; clnet_tensor_file_at(expected, i, &e); i++) {
        wanted += strncmp(e.name, name, strlen(name)) == 0 && e.name[strlen(name)] == '/';
    }
    CHECK(wanted > 0 && clnet_tensor_file_count(f) == wanted, "%s: %zu tensors, expected %zu: %s",
          name, clnet_tensor_file_count(f), wanted, clnet_error(ctx));
    for (size_t i = 0; clnet_tensor_file_at(f, i, &t); i++) {
        unsigned char found[256] = {0}, values[256] = {0};
        snprintf(key, sizeof key, "%s/%s", name, t.name);
        const bool there = clnet_tensor_file_find(expected, key, &e);
        CHECK(there && t.dtype == e.dtype && t.rank == e.rank && t.bytes == e.bytes &&
                  t.bytes <= sizeof found && memcmp(t.shape, e.shape, sizeof t.shape) == 0,
              "%s: %s has %llu bytes", key, clnet_dtype_name(t.dtype), (unsigned long long)t.bytes);
        CHECK(clnet_tensor_file_read(f, &t, found) == CLNET_OK &&
                  clnet_tensor_file_read(expected, &e, values) == CLNET_OK &&
                  memcmp(found, values, sizeof found) == 0,
              "%s: other values: %s", key, clnet_error(ctx));
    }
    clnet_tensor_file_close(f);
    clnet_context_destroy(ctx);
}

static void test_real(const char *folder) {
    static const char *const names[] = {
        "pth_zip",    "pth_older",        "pth_f16",   "pth_bf16_older",  "pth_wrapped",
        "pth_module", "pth_module_older", "pth_views", "pth_views_older", "pth_types"};
    char path[400];
    clnet_context *ctx = clnet_context_create(NULL);
    snprintf(path, sizeof path, "%s/pth.expected.safetensors", folder);
    clnet_tensor_file *expected = clnet_tensor_file_open(ctx, path);
    CHECK(expected != NULL, "%s", clnet_error(ctx));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_real(folder, names[i], expected);
    }
    clnet_tensor_file_close(expected);
    clnet_context_destroy(ctx);
}

// test_pth [DATA]
int main(int argc, char **argv) {
    clnet_encode(numbers, counted, 6, CLNET_F32);
    test_refused_pickles();
    test_accepted_pickles();
    test_every_opcode();
    test_refused_zips();
    test_entries();
    test_fake_end();
    test_older();
    test_mutations();
    test_limits();
    test_caps();
    test_double_storage();
    test_failures();
    test_written();
    test_not_written();
    test_command(getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    test_real(argc > 1 ? argv[1] : "tests/data");
    for (int i = 0; i < 4; i++) {
        free(disk.files[i].data);
    }
    return test_close();
}
