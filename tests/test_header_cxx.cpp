// The header's declarations as C++11, and every public function linked once.
#include "../clnet.h"

#include <cstdio>

typedef void (*any_function)();

static const struct {
    const char *name;
    any_function address;
} functions[] = {
#define F(name) {#name, reinterpret_cast<any_function>(name)}
    F(clnet_context_create), F(clnet_context_destroy), F(clnet_context_result), F(clnet_error),
    F(clnet_context_clear), F(clnet_context_device), F(clnet_context_isa),
    F(clnet_context_threads), F(clnet_isa_name), F(clnet_isa_supported), F(clnet_tensor_set),
    F(clnet_tensor_get), F(clnet_tensor_set_grad), F(clnet_tensor_get_grad), F(clnet_tensor_item),
    F(clnet_tensor_name), F(clnet_tensor_rank), F(clnet_tensor_size), F(clnet_tensor_count),
    F(clnet_tensor_trainable), F(clnet_tensor_rename), F(clnet_tensor_keep),
    F(clnet_tensor_require_grad), F(clnet_random_bits), F(clnet_random_uniform),
    F(clnet_random_normal), F(clnet_random_permutation), F(clnet_graph_create),
    F(clnet_graph_destroy), F(clnet_graph_context), F(clnet_graph_build),
    F(clnet_graph_set_training), F(clnet_graph_set_batch), F(clnet_graph_set_loss_scale),
    F(clnet_graph_set_step), F(clnet_graph_step), F(clnet_graph_forward), F(clnet_graph_backward),
    F(clnet_graph_zero_grad), F(clnet_graph_weights), F(clnet_graph_weight),
    F(clnet_graph_find_weight), F(clnet_graph_activations), F(clnet_graph_activation),
    F(clnet_graph_find_activation), F(clnet_graph_nodes), F(clnet_graph_node_op),
    F(clnet_graph_node_output), F(clnet_graph_node_macs), F(clnet_graph_plan),
    F(clnet_graph_first_nonfinite), F(clnet_input), F(clnet_input_labels), F(clnet_conv2d),
    F(clnet_linear), F(clnet_batch_norm), F(clnet_relu), F(clnet_sigmoid), F(clnet_softmax),
    F(clnet_max_pool2d), F(clnet_avg_pool2d), F(clnet_global_avg_pool), F(clnet_upsample_bilinear),
    F(clnet_concat), F(clnet_add), F(clnet_scale_channels), F(clnet_dropout), F(clnet_focal_loss),
    F(clnet_mask_focal_loss), F(clnet_dice_loss), F(clnet_weighted_sum), F(clnet_adam_create),
    F(clnet_adam_step), F(clnet_adam_steps), F(clnet_adam_set_steps), F(clnet_adam_get),
    F(clnet_adam_set), F(clnet_train_step), F(clnet_train_update), F(clnet_poly_lr),
    F(clnet_paper_recipe), F(clnet_model_create), F(clnet_model_destroy), F(clnet_model_open),
    F(clnet_model_describe), F(clnet_model_load), F(clnet_model_save), F(clnet_scale_width),
    F(clnet_predict), F(clnet_scores), F(clnet_mask_at_size), F(clnet_cam), F(clnet_cam_name),
    F(clnet_resize_scratch), F(clnet_resize_bilinear_antialias), F(clnet_resize_bilinear),
    F(clnet_image_to_input), F(clnet_segmentation_score), F(clnet_segmentation_mean),
    F(clnet_classification_score), F(clnet_roc_curve), F(clnet_dtype_size), F(clnet_dtype_name),
    F(clnet_decode), F(clnet_encode), F(clnet_tensor_file_open), F(clnet_tensor_file_close),
    F(clnet_tensor_file_count), F(clnet_tensor_file_at), F(clnet_tensor_file_find),
    F(clnet_tensor_file_metadata), F(clnet_tensor_file_keys), F(clnet_tensor_file_read),
    F(clnet_tensor_file_read_real), F(clnet_safetensors_write), F(clnet_checkpoint_save),
    F(clnet_checkpoint_load), F(clnet_ref_conv2d_forward), F(clnet_ref_conv2d_backward),
    F(clnet_ref_linear_forward), F(clnet_ref_linear_backward), F(clnet_ref_batch_norm_forward),
    F(clnet_ref_batch_norm_backward), F(clnet_ref_relu_forward), F(clnet_ref_relu_backward),
    F(clnet_ref_sigmoid_forward), F(clnet_ref_sigmoid_backward), F(clnet_ref_softmax_forward),
    F(clnet_ref_softmax_backward), F(clnet_ref_max_pool2d_forward),
    F(clnet_ref_max_pool2d_backward), F(clnet_ref_avg_pool2d_forward),
    F(clnet_ref_avg_pool2d_backward), F(clnet_ref_global_avg_pool_forward),
    F(clnet_ref_global_avg_pool_backward), F(clnet_ref_upsample_bilinear_forward),
    F(clnet_ref_upsample_bilinear_backward), F(clnet_ref_copy), F(clnet_ref_add_forward),
    F(clnet_ref_scale_channels_forward), F(clnet_ref_scale_channels_backward),
    F(clnet_ref_dropout), F(clnet_ref_focal_loss_forward), F(clnet_ref_focal_loss_backward),
    F(clnet_ref_mask_focal_loss_forward), F(clnet_ref_mask_focal_loss_backward),
    F(clnet_ref_dice_loss_forward), F(clnet_ref_dice_loss_backward), F(clnet_ref_adam),
#undef F
};

int main() {
    int passed = 0, failed = 0;
    for (const auto &f : functions) {
        f.address ? passed++ : failed++;
    }
    clnet_context *ctx = clnet_context_create(nullptr);
    clnet_context_result(ctx) == CLNET_OK ? passed++ : failed++;
    clnet_context_destroy(ctx);
    std::printf("%d passed, %d failed, 0 skipped\n", passed, failed);
    return failed != 0;
}
