"""ncnn on the CPU in float32: a forward pass. It has no batches: the images follow one another."""

import ncnn

import common


def main():
    options = common.parse(__doc__)
    net = ncnn.Net()
    net.opt.num_threads = options.threads
    net.opt.use_vulkan_compute = False
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(options.file) or net.load_model(options.file.replace(".param", ".bin")):
        raise SystemExit(f"{options.file}: ncnn cannot load it")
    images = [ncnn.Mat(image).clone() for image in common.image(options)]

    def step():
        for image in images:
            run = net.create_extractor()
            run.input(net.input_names()[0], image)
            for name in net.output_names():
                code, _ = run.extract(name)
                if code:
                    raise SystemExit(f"ncnn: output {name} fails with {code}")

    common.report(common.times_of(step, options.repeats), f"ncnn {ncnn.__version__}")


main()
