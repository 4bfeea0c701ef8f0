"""onnxruntime on the CPU: a forward pass."""

import onnxruntime

import common


def main():
    options = common.parse(__doc__)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(options.file, settings, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: common.image(options)}
    common.report(common.times_of(lambda: session.run(None, inputs), options.repeats),
                  f"onnxruntime {onnxruntime.__version__}")


main()
