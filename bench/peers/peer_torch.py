"""PyTorch on the CPU: a forward pass, or a training step (forward, three losses, backward, Adam)."""

import torch

import common
from networks import losses


def main():
    options = common.parse(__doc__)
    torch.set_num_threads(options.threads)
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    net = common.network(options).to(memory_format=layout)
    image = torch.from_numpy(common.image(options)).to(memory_format=layout)
    label = torch.arange(options.batch) % 3
    mask = torch.zeros(options.batch, 1, options.size, options.size)
    mask[:, :, options.size // 4:options.size // 2, options.size // 4:options.size // 2] = 1
    adam = torch.optim.Adam(net.parameters(), lr=1e-5, weight_decay=5e-4, fused=True)

    def infer():
        with torch.inference_mode():
            net(image)

    def train():
        adam.zero_grad(set_to_none=True)
        sum(losses(*net(image), label, mask).values()).backward()
        adam.step()

    net.train(options.mode == "train")
    times = common.times_of(train if options.mode == "train" else infer, options.repeats)
    common.report(times, f"PyTorch {torch.__version__}")


main()
