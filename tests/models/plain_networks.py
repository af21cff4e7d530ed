"""Second implementations of the networks, for tests only: written from the papers' diagrams, on a dict of weights.

Networks take the weights ``w`` by their names in ``state_dict``, and ``train`` (batch statistics, not running ones).
Batch norm, global mean and strided sampling are computed by hand.
"""

import torch
import torch.nn.functional as F


def norm(w, name, x, train, eps=1e-5):
    if train:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = w[f"{name}.weight"] / (var + eps).sqrt()
    return x * scale[:, None, None] + (w[f"{name}.bias"] - mean * scale)[:, None, None]


def conv(w, name, x, stride=1):
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def head(w, x):
    batch, channels = x.shape[:2]
    mean = x.reshape(batch, channels, -1).sum(2) / x[0, 0].numel()
    return mean @ w["head.weight"].T + w["head.bias"]


def drop(x, rate):
    """Apply dropout with torch's next mask: a network with the same seed draws its masks in the same order."""
    return x * (F.dropout(torch.ones_like(x), rate) if rate else 1)


def wrn(w, images, num_blocks, train, rate=0.0):
    """``num_blocks`` per group; every group but the first starts at stride 2; dropout between the convolutions."""
    x = conv(w, "stem", images)
    block = 0
    while f"blocks.{block}.conv1.weight" in w:
        p, stride = f"blocks.{block}", 2 if block and block % num_blocks == 0 else 1
        o = norm(w, f"{p}.bn1", x, train).clamp(min=0)
        skip = conv(w, f"{p}.projection", o, stride) if f"{p}.projection.weight" in w else x
        o = conv(w, f"{p}.conv1", o, stride)
        o = conv(w, f"{p}.conv2", drop(norm(w, f"{p}.bn2", o, train).clamp(min=0), rate))
        x, block = o + skip, block + 1
    return head(w, norm(w, "bn", x, train).clamp(min=0))


def wrn_lasagne(w, images, num_blocks, train):
    eps = 1e-4
    x = norm(w, "stem_bn", conv(w, "stem", images), train, eps).clamp(min=0)
    block = 0
    while f"blocks.{block}.conv1.weight" in w:
        p, stride = f"blocks.{block}", 2 if block and block % num_blocks == 0 else 1
        o = x if block == 0 else norm(w, f"{p}.bn1", x, train, eps).clamp(min=0)
        o = norm(w, f"{p}.bn2", conv(w, f"{p}.conv1", o, stride), train, eps).clamp(min=0)
        o = conv(w, f"{p}.conv2", o)
        x = o + (conv(w, f"{p}.projection", x, stride) if block % num_blocks == 0 else x)
        block += 1
    return head(w, norm(w, "bn", x, train, eps).clamp(min=0))


def densenet(w, images, num_layers, train, rate=0.0):
    """Dropout after every convolution but the first (section 3, "Training", of the paper)."""
    x = conv(w, "stem", images)
    for stage in (0, 2, 4):
        for layer in range(num_layers):
            p = f"stages.{stage}.layers.{layer}"
            o = drop(conv(w, f"{p}.conv1", norm(w, f"{p}.bn1", x, train).clamp(min=0)), rate)
            o = drop(conv(w, f"{p}.conv2", norm(w, f"{p}.bn2", o, train).clamp(min=0)), rate)
            x = torch.cat([x, o], 1)
        if stage < 4:
            p = f"stages.{stage + 1}"
            o = drop(conv(w, f"{p}.conv", norm(w, f"{p}.bn", x, train).clamp(min=0)), rate)
            x = (o[:, :, ::2, ::2] + o[:, :, 1::2, ::2] + o[:, :, ::2, 1::2] + o[:, :, 1::2, 1::2]) / 4
    return head(w, norm(w, "bn", x, train).clamp(min=0))


def dpn(w, images, widths, num_blocks, train):
    x = conv(w, "stem", images)
    for stage, width in enumerate(widths):
        p, stride = f"stages.{stage}.transition", 2 if stage else 1
        o = norm(w, f"{p}.residual.bn1", x, train).clamp(min=0)
        skip = conv(w, f"{p}.residual.projection", o, stride)
        o = norm(w, f"{p}.residual.bn2", conv(w, f"{p}.residual.conv1", o, stride), train).clamp(min=0)
        x = torch.cat([conv(w, f"{p}.residual.conv2", o) + skip, conv(w, f"{p}.dense", x, stride)], 1)
        for block in range(num_blocks - 1):
            p = f"stages.{stage}.blocks.{block}"
            o = conv(w, f"{p}.conv1", norm(w, f"{p}.bn1", x, train).clamp(min=0))
            o = conv(w, f"{p}.conv2", norm(w, f"{p}.bn2", o, train).clamp(min=0))
            x = torch.cat([x[:, :width] + o[:, :width], x[:, width:], o[:, width:]], 1)
    return head(w, norm(w, "bn", x, train).clamp(min=0))


def shake_shortcut(w, p, x, stride, train):
    x = x.clamp(min=0)
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1, :-1] = x[:, :, 1:, 1:]
    first = conv(w, f"{p}.path1", x[:, :, ::stride, ::stride])
    second = conv(w, f"{p}.path2", shifted[:, :, ::stride, ::stride])
    return norm(w, f"{p}.bn", torch.cat([first, second], 1), train)


def shake_shake(w, images, train, alpha=None, beta=None):
    """alpha, beta: (blocks, B). ``beta * x + (alpha - beta) * x.detach()`` has the value alpha x and gradient beta."""
    x = norm(w, "stem_bn", conv(w, "stem", images), train)
    for block in range(12):
        p, stride = f"blocks.{block}", 2 if block in (4, 8) else 1
        skip = shake_shortcut(w, f"{p}.shortcut", x, stride, train) if f"{p}.shortcut.bn.weight" in w else x
        out = []
        for branch in ("branch1", "branch2"):
            o = norm(w, f"{p}.{branch}.bn1", conv(w, f"{p}.{branch}.conv1", x.clamp(min=0), stride), train)
            out.append(norm(w, f"{p}.{branch}.bn2", conv(w, f"{p}.{branch}.conv2", o.clamp(min=0)), train))
        if alpha is None:
            x = skip + (out[0] + out[1]) / 2
            continue
        a, b = alpha[block][:, None, None, None], beta[block][:, None, None, None]
        mixed = b * out[0] + (1 - b) * out[1]
        x = skip + mixed + (a * out[0] + (1 - a) * out[1] - mixed).detach()
    return head(w, x.clamp(min=0))
