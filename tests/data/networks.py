"""The networks, losses and class activation maps of clnet, written in PyTorch as an independent witness.

    from networks import Network, losses, class_activation_map
    net = Network("resnet50+unet", classes=3, width=1 / 8, fusion="shared")
    logits, mask_logits = net(image)        # None for the task that the network does not have

Run as a program it prints the names and shapes of a network's weights, as they stand in its files:

    python3 networks.py resnet50+unet [WIDTH [FUSION]]

Models: `CLS`, `SEG` or `CLS+SEG`, with CLS = resnet50, inception_v3 or arlnet50 and SEG = unet or resunet.

Names of parameters and buffers (a contract: weights travel by name)
  cls.*        classification encoder: torchvision's ResNet-50 names without fc; for arlnet50 with layer{k}.{j}.alpha
               beside each block; torchvision's Inception v3 names without AuxLogits and fc
  seg.*        segmentation encoder: the same for resunet; enc1 .. enc5 for unet
  fuse.0 .. 4  fusion module of stage 1 .. 5 (only in CLS+SEG)
      reduce.0 conv 1x1 no bias, reduce.1 BN (then ReLU); se.fc1, se.fc2 conv 1x1 with bias; conv = double(F, F).
      With fusion="per-task" two doubles stand in the place of conv: conv_cls, conv_seg.
  fc           linear with bias, at top level in single-task classifiers as well
  dec.dec4 .. dec.dec1 double, dec.head conv 1x1 with bias (every network with SEG)
  double(a, b) .0 conv 3x3 pad 1 no bias, .1 BN, (.2 ReLU), .3 conv, .4 BN, (.5 ReLU)

Decisions where the text leaves room
  width        a channel count c becomes max(1, floor(c * width + 1/2)), each named count by itself: a bottleneck's
               planes (64) and its output (256) too, and every F. The input's 3, the classes and the mask's 1 stay.
               SE's middle is max(1, F // 16) of the scaled F.
  Inception    an InceptionA's pool_features and an InceptionC's channels_7x7 are named counts as well. Stages: behind
               Conv2d_2b_3x3, Conv2d_4a_3x3, Mixed_5d, Mixed_6e, Mixed_7c. No auxiliary head, no transform_input.
  ARLNet50     out = ReLU(x + F + alpha S(F) x), S the softmax over the positions of each channel, alpha shape (1).
  dropout      0.5 before fc in the single-task Inception v3, left out here: the cases have none.
  downsample   the first block of each layer has one at any width, and no other block has.
  fc           takes the sum of the scaled F (1984 at width 1); a single-task classifier: its last stage (2048).
  fusion       the map with fewer pixels (H * W) is resized to the other's height and width, bilinear with
               align_corners = False; with as many pixels EC goes to ES's size. Concatenated as EC, ES.
  decoder      up(x) comes first, then the skip: concat(up(x to the skip's size), skip). A single-task segmenter has
               the encoder's ES_1 .. ES_5 as skips, so dec4 takes 1024 + 512 channels in unet, 2048 + 1024 in resunet.
  mask         dec.head runs at the size of FM_1 (or ES_1), then bilinear to the input's size.
  labels       -1 is an image without label; a mask with any negative value is an image without mask.
  CAM layers   fm1 .. fm5 are the fusion outputs that the classification reads (conv_cls with per-task fusion);
               in a single-task classifier the encoder's stages 1 .. 5.
"""

import math
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

FUSED = (64, 128, 256, 512, 1024)
BLOCKS = (3, 4, 6, 3)


def scaled(channels, width):
    return max(1, math.floor(channels * width + 0.5))


def double(in_channels, out_channels):
    layers = []
    for source in (in_channels, out_channels):
        layers += [nn.Conv2d(source, out_channels, 3, padding=1, bias=False),
                   nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


def resize(x, size):
    """Bilinear, which is a copy where the size is the same already."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Bottleneck(nn.Module):
    """1x1 down, 3x3 with the stride, 1x1 up, added to its input (or to a strided 1x1 of it)."""

    def __init__(self, in_channels, planes, out_channels, stride, downsample, attention):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels))
        if attention:
            self.alpha = nn.Parameter(torch.full((1,), 0.001))
        # One module per use, so that a hook sees the input of each ReLU by itself.
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        x = x if self.downsample is None else self.downsample(x)
        if hasattr(self, "alpha"):
            attention = F.softmax(y.flatten(2), dim=2).view(y.shape)
            return self.relu3(x + y + self.alpha * attention * x)
        return self.relu3(y + x)


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its pooling and fc; returns the five stages. With attention: ARLNet50."""

    def __init__(self, width, attention=False):
        super().__init__()
        channels = scaled(64, width)
        self.channels = [channels]
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for k, blocks in enumerate(BLOCKS):
            planes, out_channels = scaled(64 << k, width), scaled(256 << k, width)
            layer = []
            for j in range(blocks):
                stride = 2 if j == 0 and k > 0 else 1
                layer.append(Bottleneck(channels, planes, out_channels, stride, j == 0, attention))
                channels = out_channels
            setattr(self, f"layer{k + 1}", nn.Sequential(*layer))
            self.channels.append(channels)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        stages = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


class BasicConv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, **options):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **options)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


# Inception's blocks: branches of (name, channels, kernel, stride); a branch's convolutions follow each other, a list
# in the place of one is a fork whose ends are concatenated. None: 3x3 pooling, average before a 1x1, else maximum.
def block_a(pool_features):
    return [[("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            [None, ("branch_pool", pool_features, 1)]]


def block_c(c):
    return [[("branch1x1", 192, 1)],
            [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))],
            [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7)),
             ("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))],
            [None, ("branch_pool", 192, 1)]]


BLOCK_B = [[("branch3x3", 384, 3, 2)],
           [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
           [None]]
BLOCK_D = [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
           [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2)],
           [None]]
BLOCK_E = [[("branch1x1", 320, 1)],
           [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
           [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]],
           [None, ("branch_pool", 192, 1)]]
MIXED = {"Mixed_5b": block_a(32), "Mixed_5c": block_a(64), "Mixed_5d": block_a(64), "Mixed_6a": BLOCK_B,
         "Mixed_6b": block_c(128), "Mixed_6c": block_c(160), "Mixed_6d": block_c(160), "Mixed_6e": block_c(192),
         "Mixed_7a": BLOCK_D, "Mixed_7b": BLOCK_E, "Mixed_7c": BLOCK_E}


class Mixed(nn.Module):
    """One block. Stride 1 keeps the size; stride 2 has no padding."""

    def __init__(self, in_channels, branches, width):
        super().__init__()
        self.branches = branches
        self.avgpool = nn.AvgPool2d(3, stride=1, padding=1)
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.channels = 0
        for branch in branches:
            ends = [in_channels]
            for step in branch:
                steps = step if isinstance(step, list) else [step] if step else []
                ends = [self.add(ends[0], width, *one) for one in steps] or ends
            self.channels += sum(ends)

    def add(self, in_channels, width, name, channels, kernel, stride=1):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = tuple(k // 2 for k in kernel) if stride == 1 else 0
        conv = BasicConv2d(in_channels, scaled(channels, width), kernel, stride=stride, padding=padding)
        setattr(self, name, conv)
        return scaled(channels, width)

    def forward(self, x):
        ends = []
        for branch in self.branches:
            y = x
            for step in branch:
                if step is None:
                    y = self.avgpool(y) if len(branch) > 1 else self.maxpool(y)
                elif isinstance(step, list):
                    y = torch.cat([getattr(self, one[0])(y) for one in step], dim=1)
                else:
                    y = getattr(self, step[0])(y)
            ends.append(y)
        return torch.cat(ends, dim=1)


class InceptionV3(nn.Module):
    """torchvision's Inception v3 without its heads; returns the five stages."""

    def __init__(self, width):
        super().__init__()
        c = [scaled(n, width) for n in (32, 32, 64, 80, 192)]
        self.Conv2d_1a_3x3 = BasicConv2d(3, c[0], 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(c[0], c[1], 3)
        self.Conv2d_2b_3x3 = BasicConv2d(c[1], c[2], 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = BasicConv2d(c[2], c[3], 1)
        self.Conv2d_4a_3x3 = BasicConv2d(c[3], c[4], 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.channels, channels = [c[2], c[4]], c[4]
        for name, branches in MIXED.items():
            block = Mixed(channels, branches, width)
            setattr(self, name, block)
            channels = block.channels
            if name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
                self.channels.append(channels)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        stages = [x]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        stages.append(x)
        x = self.maxpool2(x)
        for name in MIXED:
            x = getattr(self, name)(x)
            if name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
                stages.append(x)
        return stages


class UNetEncoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.channels = [scaled(c, width) for c in FUSED]
        self.maxpool = nn.MaxPool2d(2)
        for i, (source, channels) in enumerate(zip([3] + self.channels, self.channels)):
            setattr(self, f"enc{i + 1}", double(source, channels))

    def forward(self, x):
        stages = [self.enc1(x)]
        for encoder in (self.enc2, self.enc3, self.enc4, self.enc5):
            stages.append(encoder(self.maxpool(stages[-1])))
        return stages


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        middle = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, middle, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(middle, channels, 1)

    def forward(self, x):
        squeezed = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(self.relu(self.fc1(squeezed))))


class Fusion(nn.Module):
    """FM_i: returns the map for the classification and the map for the segmentation (the same one if shared)."""

    def __init__(self, in_channels, channels, per_task):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False),
                                    nn.BatchNorm2d(channels), nn.ReLU())
        self.se = SqueezeExcite(channels)
        self.per_task = per_task
        if per_task:
            self.conv_cls = double(channels, channels)
            self.conv_seg = double(channels, channels)
        else:
            self.conv = double(channels, channels)

    def forward(self, ec, es):
        if ec.shape[2] * ec.shape[3] <= es.shape[2] * es.shape[3]:
            ec = resize(ec, es.shape[2:])
        else:
            es = resize(es, ec.shape[2:])
        x = self.se(self.reduce(torch.cat([ec, es], dim=1)))
        if self.per_task:
            return self.conv_cls(x), self.conv_seg(x)
        x = self.conv(x)
        return x, x


class Decoder(nn.Module):
    def __init__(self, skip_channels, width):
        super().__init__()
        channels = skip_channels[4]
        for i in (4, 3, 2, 1):
            out_channels = scaled(FUSED[i - 1], width)
            setattr(self, f"dec{i}", double(channels + skip_channels[i - 1], out_channels))
            channels = out_channels
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, skips, size):
        x = skips[4]
        for i, block in ((4, self.dec4), (3, self.dec3), (2, self.dec2), (1, self.dec1)):
            skip = skips[i - 1]
            x = block(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return resize(self.head(x), size)


CLASSIFIERS = {"resnet50": ResNet50, "inception_v3": InceptionV3,
               "arlnet50": lambda width: ResNet50(width, attention=True)}
SEGMENTERS = {"unet": UNetEncoder, "resunet": ResNet50}


class Network(nn.Module):
    """After a forward pass `maps` holds fm1 .. fm5, the five maps that the classification reads."""

    def __init__(self, model="resnet50+unet", classes=3, width=1.0, fusion="shared"):
        super().__init__()
        parts = model.split("+")
        has_cls, has_seg = parts[0] in CLASSIFIERS, parts[-1] in SEGMENTERS
        if len(parts) != has_cls + has_seg:
            raise ValueError(f"unknown model {model}")
        self.cls = self.seg = self.fuse = self.fc = self.dec = None
        if has_cls:
            self.cls = CLASSIFIERS[parts[0]](width)
            features = self.cls.channels[4]
        if has_seg:
            self.seg = SEGMENTERS[parts[-1]](width)
            skips = self.seg.channels
        if has_cls and has_seg:
            fused = [scaled(c, width) for c in FUSED]
            self.fuse = nn.ModuleList(
                Fusion(ec + es, f, fusion == "per-task")
                for ec, es, f in zip(self.cls.channels, self.seg.channels, fused))
            features, skips = sum(fused), fused
        if has_cls:
            self.fc = nn.Linear(features, classes)
        if has_seg:
            self.dec = Decoder(skips, width)
        self.maps = None
        initialise(self)

    def forward(self, image):
        cls = self.cls(image) if self.cls else None
        seg = self.seg(image) if self.seg else None
        if self.fuse:
            pairs = [fuse(ec, es) for fuse, ec, es in zip(self.fuse, cls, seg)]
            cls, seg = [p[0] for p in pairs], [p[1] for p in pairs]
        self.maps = cls
        logits = mask_logits = None
        if self.fc:
            pooled = [m.mean(dim=(2, 3)) for m in (cls if self.fuse else cls[4:])]
            logits = self.fc(torch.cat(pooled, dim=1))
        if self.dec:
            mask_logits = self.dec(seg, image.shape[2:])
        return logits, mask_logits


def initialise(net):
    """Kaiming normal, fan-out, ReLU gain; biases 0. BN's 1 and 0 and fc's own are PyTorch's defaults."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Losses, each the mean over the images that have that truth, 0 without gradient if none has.

def classification_loss(logits, label, gamma=2.0):
    """mean over the batch of -(1 - p_t)^gamma log p_t, p the softmax."""
    has = label >= 0
    if not has.any():
        return logits.new_zeros(())
    log_p = F.log_softmax(logits[has], dim=1).gather(1, label[has].unsqueeze(1))
    # 1 - exp(log_p) cancels where p is near 1; expm1 does not.
    return (-((-torch.expm1(log_p)) ** gamma) * log_p).mean()


def focal_loss(mask_logits, mask, gamma=2.0):
    """The same on the sigmoid, mean over pixels. p_t = sigmoid(z) with z = logit for lesion, -logit for skin."""
    has = (mask >= 0).flatten(1).all(dim=1)
    if not has.any():
        return mask_logits.new_zeros(())
    z = mask_logits[has] * (2 * mask[has] - 1)
    return (-(torch.sigmoid(-z) ** gamma) * F.logsigmoid(z)).mean()


def dice_loss(mask_logits, mask):
    """mean over the batch of 1 - (2 sum(p m) + 1) / (sum p + sum m + 1), sums over one image."""
    has = (mask >= 0).flatten(1).all(dim=1)
    if not has.any():
        return mask_logits.new_zeros(())
    p, m = torch.sigmoid(mask_logits[has]).flatten(1), mask[has].flatten(1)
    return (1 - (2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


def losses(logits, mask_logits, label=None, mask=None, gamma=2.0):
    """The losses of the tasks that are there, by name; the total is their sum (weights 1, 1, 1)."""
    parts = {}
    if logits is not None and label is not None:
        parts["classification"] = classification_loss(logits, label, gamma)
    if mask_logits is not None and mask is not None:
        parts["focal"] = focal_loss(mask_logits, mask, gamma)
        parts["dice"] = dice_loss(mask_logits, mask)
    return parts


def class_activation_map(a, g, variant):
    """a: the map A (N,C,h,w), g = d(logit of the class)/dA; returns the raw map (N,h,w)."""
    if variant == "paper":          # sum over k of ReLU(mean(g_k) A_k)
        return F.relu(g.mean(dim=(2, 3), keepdim=True) * a).sum(1)
    if variant == "gradcam":        # ReLU(sum over k of mean(g_k) A_k)
        return F.relu((g.mean(dim=(2, 3), keepdim=True) * a).sum(1))
    if variant == "gradcam++":      # w_k = sum over pixels of alpha ReLU(g)
        below = 2 * g ** 2 + a.sum(dim=(2, 3), keepdim=True) * g ** 3
        alpha = torch.where(g == 0, torch.zeros_like(g), g ** 2 / torch.where(g == 0, 1.0, below))
        return F.relu(((alpha * F.relu(g)).sum(dim=(2, 3), keepdim=True) * a).sum(1))
    raise ValueError(f"unknown variant {variant}")


def class_activation_maps(net, image, label):
    """Evaluation mode: {(variant, "fm1"): raw map, ..} for the classes in `label`, all layers and variants."""
    net.eval()
    logits, _ = net(image)
    score = logits.gather(1, label.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(score, net.maps)
    return {(variant, f"fm{i + 1}"): class_activation_map(a.detach(), g, variant)
            for variant in ("paper", "gradcam", "gradcam++")
            for i, (a, g) in enumerate(zip(net.maps, gradients))}


def print_names(model, width=1.0, fusion="shared"):
    net = Network(model, width=width, fusion=fusion)
    for name, value in net.state_dict().items():
        shape = ",".join(str(n) for n in value.shape)
        kind = "buffer" if name.endswith(("running_mean", "running_var", "num_batches_tracked")) else "parameter"
        print(f"{name}\t({shape})\t{kind}")
    print(f"# {sum(p.numel() for p in net.parameters())} parameters in {len(list(net.parameters()))} tensors")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: networks.py MODEL [WIDTH [FUSION]]")
    print_names(sys.argv[1], *[float(w) for w in sys.argv[2:3]], *sys.argv[3:4])
