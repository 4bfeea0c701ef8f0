"""OpenVINO on the CPU in float32: a forward pass."""

import openvino

import common


def main():
    options = common.parse(__doc__)
    model = openvino.Core().compile_model(options.file, "CPU", {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"})
    request, image = model.create_infer_request(), common.image(options)
    common.report(common.times_of(lambda: request.infer({0: image}), options.repeats),
                  f"OpenVINO {openvino.__version__.split('-')[0]}")


main()
