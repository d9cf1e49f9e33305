"""Equal to the official models, number for number.

Arrays computed by the authors' JAX code (github.com/google-research/magvit at 05e8cfd) with
random parameters at tiny sizes: same parameters and inputs in, same numbers out. Tolerances:
2e-5 for activations, 2e-6 for losses, 1e-4 of the largest for gradients; ids and masks are equal.
Where this project differs on purpose, the test says so and reaches the official value through
public arguments.
"""
import math

import numpy as np
import pytest
import torch
from conftest import golden_path
from einops import rearrange
from official import (below, discriminator_state, load_discriminator,
                      load_image_tokenizer, load_tokenizer, load_transformer, tokenizer_state,
                      transformer_state, video)

import decode
import resnet
from commit import (commit_loss, commit_mask, cutoff_score, is_padding, make_condition,
                    mask_ratio, num_masked)
from discriminator import LeCam, discriminator_loss, generator_loss
from measure import metrics
from steps import Recipe, Trainee, tokenizer_step
from tokenizer import VideoTokenizer, entropy_loss, inflate
from training.loop import learning_rate
from training.presets import PRESETS
from transformer import MaskedTransformer

ACTIVATIONS, LOSSES, GRADIENTS = 2e-5, 2e-6, 1e-4
OFFICIAL_NAMES = {"frame_prediction": "FP", "frame_interpolation": "FI", "outpainting_c": "OPC",
                  "outpainting_v": "OPV", "outpainting_h": "OPH", "outpainting_dv": "OPD",
                  "inpainting_c": "IPC", "inpainting_dv": "IPD", "full_generation": "CG",
                  "frame_prediction_c": "CFP"}


# ---------------------------------------------------------------------------------------------
# Sec. 3.1: tokenizer, discriminator, inflation

@pytest.mark.parametrize("name, load", [("vq3d_tiny_reflect_pad", load_tokenizer),
                                        ("vq2d_tiny", load_image_tokenizer)])
def test_the_tokenizer_computes_the_official_one(golden, deviation, name, load):
    arrays = golden(name)
    tokenizer = load(golden_path(name))
    x = video(arrays["x"])
    outputs = {}
    for part in ("encoder", "decoder"):
        for number, layer in enumerate(getattr(tokenizer, part)):
            layer.register_forward_hook(
                lambda _, __, y, key=f"{part}.{number}": outputs.__setitem__(key, y))
    output, latents = tokenizer(x), tokenizer.latents(x)
    deviation(latents, video(arrays["z_enc"]), ACTIVATIONS, "latents")
    deviation(tokenizer.quantizer.distances(latents), arrays["distances"], ACTIVATIONS, "distances")
    assert torch.equal(tokenizer.encode(x), torch.from_numpy(arrays["ids"]).long())
    assert torch.equal(output.tokens, torch.from_numpy(arrays["ids"]).long())
    for key, picture in (("recon_train", output.reconstruction),
                         ("recon", tokenizer.decode(output.tokens)),
                         ("recon_from_ids", tokenizer.decode(tokenizer.encode(x)))):
        deviation(picture, video(arrays[key]), ACTIVATIONS, key)
    weighted = dict(e_latent_loss=0.25 * output.commitment_loss,
                    q_latent_loss=output.codebook_loss, entropy_loss=0.1 * output.entropy_loss)
    for key, loss in weighted.items():
        deviation(loss, arrays[key], LOSSES, key)
    deviation(sum(weighted.values()), arrays["quantizer_loss"], LOSSES, "their sum")
    for key, official in below(arrays, "inter").items():    # <part>/<type>_<number as they run>
        part, name = key.split("/")[:2]
        kind, number = name.replace("ResBlock", "ResidualBlock").rsplit("_", 1)
        same = [f"{part}.{i}" for i, layer in enumerate(getattr(tokenizer, part))
                if type(layer).__name__ == kind]
        deviation(outputs[same[int(number)]], video(official), ACTIVATIONS, key)


def test_the_3d_discriminator_computes_the_official_one(golden, deviation):
    """Blocks pool odd heights and a time axis of length one: SAME pooling."""
    arrays = golden("disc3d_tiny")
    network = load_discriminator(golden_path("disc3d_tiny"))
    deviation(network(video(arrays["x"])), arrays["logits"][:, 0], ACTIVATIONS)


@pytest.mark.parametrize("mode", ["central", "average"])
def test_inflation_fills_3d_kernels_as_the_official_code_does(golden, mode):
    arrays = golden("inflation_tiny")
    two_d = load_image_tokenizer(arrays, "params2d")
    expected = load_tokenizer(arrays, f"params3d_{mode}", padding="zeros")
    ours = inflate(two_d.state_dict(), VideoTokenizer(expected.config), mode)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-7, atol=1e-8)


class Recording(torch.optim.Adam):
    """Adam that remembers the gradients it was given."""

    def step(self):
        self.gradients = {name: parameter.grad.clone() for name, parameter in self.named}
        super().step()


@pytest.mark.parametrize("name, steps", [("gan_train_step0", 1), ("gan_train_3steps", 3)])
def test_three_training_steps_of_stage_1_are_the_official_ones(golden, deviation, name, steps):
    """Losses, gradients of both networks, LeCam's averages, rates: all through tokenizer_step."""
    arrays = golden(name)
    tokenizer = load_tokenizer(arrays, "g_params0", padding="zeros")
    discriminator = load_discriminator(arrays, "d_params0")
    ema = load_tokenizer(arrays, "g_params0", padding="zeros").requires_grad_(False)
    networks = dict(tokenizer=tokenizer, discriminator=discriminator, lecam=LeCam(), ema=ema)
    optimizers = {}
    for network in ("tokenizer", "discriminator"):
        optimizers[network] = Recording(networks[network].parameters(), betas=(0.0, 0.99))
        optimizers[network].named = list(networks[network].named_parameters())
    trainee = Trainee(networks, optimizers)
    config = Recipe(precision="float32", lecam_weight=1.0)
    for step in range(steps):
        rate = learning_rate(step, 1e-4, 2, 10)
        deviation(rate, arrays[f"step{step}/lr"], 1e-10, "learning rate")
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        terms = tokenizer_step(trainee, video(arrays[f"step{step}/batch"]), config)
        check_losses(terms, below(arrays, f"step{step}/metric"), config, deviation)
        for key in ("real", "fake"):
            deviation(getattr(networks["lecam"], f"average_{key}"),
                      arrays[f"step{step}/lecam_ema_{key}"], 1e-8, "LeCam's averages")
        for network, letter in (("tokenizer", "g"), ("discriminator", "d")):
            official = {name: arrays.get(f"step{step}/{letter}_grad/{name}",
                                         np.full_like(parameter, np.nan))       # not at hand
                        for name, parameter in below(arrays, f"{letter}_params0").items()}
            compare_gradients(optimizers[network].gradients, official, networks[network],
                              deviation)
    if "ema_params3/quantizer/codebook" in arrays:
        deviation(networks["ema"].quantizer.codebook, arrays["ema_params3/quantizer/codebook"],
                  1e-5, "EMA")


def check_losses(terms, metric, config, deviation):
    quantizer = (terms["codebook"] + 0.25 * terms["commitment"] + 0.1 * terms["entropy"])
    d_loss = (terms["discriminator"] + config.r1_weight * terms["r1"]
              + config.lecam_weight * terms["lecam"])
    for key, ours in dict(reconstruction_loss=terms["reconstruction"], quantizer_loss=quantizer,
                          g_adversarial_loss=0.1 * terms["generator"], g_loss=terms["loss"],
                          d_adversarial_loss=terms["discriminator"], lecam_loss=terms["lecam"],
                          d_loss=d_loss).items():
        deviation(ours, metric[key], LOSSES, key)


def compare_gradients(ours, official, network, deviation):
    gradients = (tokenizer_state(official, network) if isinstance(network, VideoTokenizer)
                 else discriminator_state(official))
    gradients = {name: g for name, g in gradients.items() if not g.isnan().any()}
    for name, gradient in gradients.items():
        # Codebook and encoder get gradient through exp(-distance / 0.01), which costs digits in
        # float32: from the same in float64 the official ones are up to 4e-4 away, ours 1e-3.
        tolerance = 1e-3 if name.startswith(("quantizer", "encoder")) else GRADIENTS
        deviation(ours[name], gradient, tolerance, name, scale=scale_of(gradient, gradients))


def scale_of(gradient, gradients):
    """The largest value of a gradient, or, where all of it is rounding error (a bias in front of
    a normalization), a hundredth of the network's largest."""
    return max(gradient.abs().max().item(), 1e-2 * max(g.abs().max().item()
                                                      for g in gradients.values()))


# ---------------------------------------------------------------------------------------------
# Sec. 3.2: conditions, masks, loss, transformer

@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("official, task", OFFICIAL_NAMES.items())
def test_app_b1_given_pixels_are_official_and_ispad_too_but_for_two_tasks(golden, size, official,
                                                                          task):
    """The paper: a supervoxel is padding if it holds only padding. The official code draws the
    mask on the latent grid, which calls some partly given supervoxels of OPD and IPD padding."""
    arrays = below(golden("cond_tasks" if size == 128 else "cond_tasks_small"),
                   f"16x{size}x{size}_lat4x16x16/{official}")
    _, valid = make_condition(torch.zeros(1, 3, 16, size, size), task)
    given = ~is_padding(valid, (4, 16, 16))
    if task == "CG":
        assert not valid.any() and not given.any()
        return
    shape = arrays["video_mask_shape"]
    pixels = np.unpackbits(arrays["video_mask"])[:shape.prod()].reshape(shape)[0, ..., 0]
    assert np.array_equal(valid.numpy(), pixels.astype(bool))
    assert torch.equal(given, torch.from_numpy(arrays["latent_any_valid_from_pixels"]))
    extra = int((given & ~torch.from_numpy(arrays["latent_mask"][0])).sum())
    assert extra == {"OPD": 128, "IPD": 64}.get(task, 0)


@pytest.mark.parametrize("official, task", [x for x in OFFICIAL_NAMES.items() if x[1] != "CG"])
def test_the_padded_condition_videos_are_the_official_ones(golden, deviation, official, task):
    arrays = golden("cond_tasks")
    clip = video(arrays["16x32x32_lat4x16x16/video"])
    condition, _ = make_condition(clip, task)
    deviation(condition, video(arrays[f"16x32x32_lat4x16x16/{official}/cond_video"]), 1e-6)


def test_five_given_frames_make_two_latent_condition_frames(golden, deviation):
    """Kinetics-600. The official default says one; the paper's definition says two."""
    arrays = golden("cond_tasks")
    clip = video(arrays["16x32x32_lat4x16x16/video"])
    condition, valid = make_condition(clip, "FP", condition_frames=5)
    deviation(condition, video(arrays["fp5/cond_video"]), 1e-6)
    assert (~is_padding(valid, (4, 16, 16))).any((1, 2)).tolist() == [True, True, False, False]
    assert arrays["fp5/latent_mask_default"].reshape(4, -1).any(1).tolist() == [
        True, False, False, False]


@pytest.mark.parametrize("schedule", ["cosine", "exp", "uniform"])
def test_gamma_is_official_and_masked_counts_are_ceilings_of_it_not_floors(golden, deviation,
                                                                           schedule):
    """And where float32 makes the official cosine one short: 511 at step 8, exactly 512."""
    arrays = golden("mask_schedule")
    ratio = torch.from_numpy(arrays["ratio"])
    deviation(mask_ratio(ratio, schedule, 1024), arrays[f"rate/{schedule}"], 1e-6, schedule)
    progress = torch.arange(1, 13, dtype=torch.float64) / 12
    ours = num_masked(mask_ratio(progress, schedule, 1024), 1024)
    floors = torch.from_numpy(arrays[f"num_masked_K12_N1024/{schedule}"]).long()
    assert ((ours - floors.clamp(min=1)) <= 1).all() and (ours >= floors).all()
    assert schedule != "cosine" or (ours[7], floors[7]) == (512, 511)


@pytest.mark.parametrize("official", OFFICIAL_NAMES)
def test_masking_logits_loss_and_gradients_are_the_official_ones(golden, deviation, official):
    """Eq. (2), the transformer and Eq. (3). Official prompts are the task 16 - k for id -k."""
    arrays = golden("bert_tiny_train")
    model = load_transformer(arrays)
    case = below(arrays, official)
    K, V, N = int(arrays["codebook_size"]), int(arrays["vocab_size"]), 32
    tokens, scores = flat(case["inputs"]).long(), flat(case["mask_score"])
    condition = flat(case["cond_inputs"]).long() if "cond_inputs" in case else tokens
    is_pad = ~flat(case["cond_mask"]) if "cond_mask" in case else torch.ones(3, N).bool()
    floor = math.floor(float(case["mask_ratio"][0]) * N)
    cutoff = cutoff_score(scores, torch.full((3,), floor))
    corrupted = commit_mask(tokens, condition, is_pad, scores, cutoff, model.mask_id)
    theirs = torch.from_numpy(case["masked_tokens"]).long() % V      # negative ids: from the end
    task = torch.full((3,), 16 + int(case["task_token"]))
    label = theirs[:, 1] - K
    assert torch.equal(model.prefix(task, label), theirs[:, :2])
    assert torch.equal(corrupted, theirs[:, 2:])

    logits = model(corrupted, task, label)
    deviation(logits, case["logits"][:, 2:, :K], ACTIVATIONS, "logits")
    loss = commit_loss(model.cross_entropy(logits, tokens, 1e-4), is_pad, scores, cutoff)
    deviation(loss.total, case["loss"], LOSSES, "loss")
    gradients = below(case, "grad")
    if gradients:
        loss.total.backward()
        gradients = transformer_state(gradients)
        for name, gradient in gradients.items():
            deviation(model.get_parameter(name).grad, gradient, GRADIENTS, name,
                      scale=scale_of(gradient, gradients))


def flat(array):
    return rearrange(torch.from_numpy(array), "b t h w -> b (t h w)")


# ---------------------------------------------------------------------------------------------
# Algorithm 1

DECODINGS = ["decode_fp_cosine", "decode_fp_exp_T400", "decode_opd_cosine",
             "decode_cg_singletask_cosine"]


def prefix_of(arrays, model):
    """The recorded prefix as task (B,), which a model without prompts ignores, and label (B,)."""
    prefix = torch.from_numpy(arrays["prefix_tokens"]).long() % model.config.vocabulary_size
    label = prefix[:, -1] - model.config.codebook_size
    return prefix[:, 0] - (model.config.codebook_size + model.no_class + 1), label


@pytest.mark.parametrize("name", DECODINGS)
def test_decoding_replays_the_official_one_token_for_token(golden, deviation, monkeypatch, name):
    """With the recorded noise and latent mask, and the official counts in num_masked's place."""
    arrays = golden(name)
    model = load_transformer(arrays)
    steps, V = int(arrays["num_iter"]), model.config.vocabulary_size
    task, label = prefix_of(arrays, model)
    B, N = len(task), model.config.num_tokens
    if "cond_inputs" in arrays:
        condition, is_pad = flat(arrays["cond_inputs"]).long(), ~flat(arrays["cond_mask"])
    else:
        condition, is_pad = torch.zeros(B, N).long(), torch.ones(B, N).bool()
    recorded = iter([torch.from_numpy(noise).reshape(B, N, *noise.shape[4:])
                     for t in range(steps)
                     for noise in (arrays["token_noise"][t], arrays["mask_noise"][t])])
    counts = iter(official_counts(arrays, N))
    monkeypatch.setattr(decode, "num_masked", lambda ratio, num_tokens: next(counts))
    states = decode.commit_decode(model, task, label, condition, is_pad, steps=steps,
                                  temperature=float(arrays["choice_temperature"]),
                                  schedule=str(arrays["schedule"]),
                                  noise=lambda shape: next(recorded))
    for t, state in enumerate(states):
        assert torch.equal(state.inputs, flat(arrays["next_tokens"][t]).long() % V), f"inputs {t}"
        assert torch.equal(state.tokens, flat(arrays["mask_in"][t + 1]).long()), f"tokens {t}"
        if t < steps - 1:            # the official code goes on to hide a token after its last step
            assert torch.equal(state.unknown, flat(arrays["next_unknown"][t + 1])), f"unknown {t}"
            deviation(state.confidence[state.unknown],
                      flat(arrays["mask_score"][t])[state.unknown], ACTIVATIONS, "confidence")
    assert torch.equal(state.tokens, flat(arrays["output"]).long())


@pytest.mark.parametrize("name", DECODINGS)
def test_guidance_subtracts_what_the_official_unconditional_prefix_says(golden, name):
    """CG's prompt and no class, with [MASK] in the place of condition tokens."""
    arrays = golden(name)
    model = load_transformer(arrays)
    task, label = prefix_of(arrays, model)
    given, passes = torch.zeros(len(task), model.config.num_tokens, dtype=torch.long), []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs))
    decode.guided_logits(model, given, given, given == 0, task, label, 2.0)
    (tokens, tasks, labels), = passes
    conditional, unconditional = model.prefix(tasks, labels).chunk(2)
    V = model.config.vocabulary_size
    assert torch.equal(conditional, torch.from_numpy(arrays["prefix_tokens"]).long() % V)
    assert torch.equal(unconditional, torch.from_numpy(arrays["uncond_prefix_tokens"]).long() % V)
    assert torch.equal(tokens, torch.cat([given, torch.full_like(given, model.mask_id)]))


def official_counts(arrays, N):
    """floor(gamma N) in float32, at least 1, at most one less than are unknown: (steps, B)."""
    floors = torch.from_numpy(np.floor(arrays["mask_ratio"][1:] * np.float32(N)))
    return floors.long().clamp(min=1).minimum(torch.from_numpy(arrays["num_masked_max"]).long())


# ---------------------------------------------------------------------------------------------
# Losses, learning rates, metrics

def test_each_loss_is_the_official_one(golden, deviation):
    arrays = golden("losses_small")
    affinity = torch.from_numpy(arrays["affinity"])
    for temperature in (0.01, 1.0):
        deviation(entropy_loss(-affinity, temperature), arrays[f"entropy/softmax/{temperature}"],
                  2e-5, "entropy")                  # minus of two sums of logarithms
    real, fake = (torch.from_numpy(arrays[key])[:, 0] for key in ("real_logit", "fake_logit"))
    deviation(discriminator_loss(real, fake), arrays["d_loss/non-saturating"], LOSSES)
    deviation(generator_loss(fake), arrays["g_loss/non-saturating"], LOSSES)
    lecam = LeCam()
    lecam.average_real += 0.3
    lecam.average_fake -= 0.2
    deviation(lecam(real.mean(), fake.mean()),
              arrays["lecam(real_mean,fake_mean,ema_real=0.3,ema_fake=-0.2)"], LOSSES)
    logits, labels, weights = (torch.from_numpy(arrays[f"ce_{name}"])
                               for name in ("logits", "labels", "weights"))
    smoothed = MaskedTransformer.cross_entropy(None, logits, labels, label_smoothing=0.1)
    per_example = (smoothed * weights).sum(1) / (weights.sum(1) + 1e-8)
    deviation(per_example.mean(), arrays["ce_ls01"], LOSSES, "smoothed cross-entropy")


def test_the_official_perceptual_loss_is_a_resnets(golden, deviation):
    arrays = golden("losses")
    real, fake = (rearrange(torch.from_numpy(arrays[f"perc_{name}"]), "b h w c -> b c h w")
                  for name in ("real", "fake"))
    logits, last = resnet.resnet(arrays, real)
    deviation(logits, arrays["perc_logits_real"], 2e-5, "logits")
    deviation(last.mean((2, 3)), arrays["perc_pool_mean_real"], 2e-5, "last map")
    for on_logits, name in ((True, "perc_loss_logit"), (False, "perc_loss_pool")):
        deviation(resnet.perceptual_loss(arrays, real, fake, on_logits), arrays[name], LOSSES)


@pytest.mark.parametrize("official, preset, stage", [
    ("vq_ucf_B", "ucf101-B", "tokenizer"), ("vq_ucf_L", "ucf101-L", "tokenizer"),
    ("vq_bair_B", "bair-B", "tokenizer"), ("gvt_ucf_B", "ucf101-B", "transformer"),
    ("gvt_bair_B", "bair-B", "transformer"), ("gvt_bair_L", "bair-L", "transformer")])
def test_learning_rates_of_the_presets_are_official(golden, deviation, official, preset, stage):
    arrays = below(golden("lr_schedules"), official)
    config = PRESETS[preset]
    total, warmup = config.steps(stage, config.train_videos)
    assert (total, warmup) == (int(arrays["total"]), int(arrays["warmup"]))
    peak = getattr(config, f"{stage}_rate")
    for step, rate in zip(arrays["steps"].tolist(), arrays["lr"]):
        if step < total:                             # at its end the official cosine starts again
            assert math.isclose(learning_rate(step, peak, warmup, total), rate, rel_tol=1e-4,
                                abs_tol=1e-11)


@pytest.mark.parametrize("case", ["full_rank", "unequal_n", "rank_deficient"])
def test_the_frechet_distance_is_tf_gans(golden, deviation, case):
    arrays = below(golden("frechet_and_is"), case)
    distance = metrics.frechet_distance(*metrics.gaussian(arrays["a"]),
                                        *metrics.gaussian(arrays["b"]))
    deviation(distance, arrays["fd_float64in"], 1e-9)


def test_folds_and_the_inception_score_are_tf_gans(golden, deviation):
    arrays = golden("frechet_and_is")

    def distance(a, b):
        return metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))

    a, b, logits = (torch.from_numpy(arrays[key]) for key in ("folds/a", "folds/b", "is/logits"))
    mean, deviation_ = metrics.over_folds(distance, 4, a, b)
    deviation(mean, arrays["folds/mean"], 1e-6)
    deviation(deviation_, arrays["folds/std"], 1e-6)
    mean, deviation_ = metrics.over_folds(metrics.inception_score, 4, logits)
    deviation(mean, arrays["is/mean4"], 1e-6)
    deviation(deviation_, arrays["is/std4"], 1e-6)
    deviation(metrics.inception_score(logits), arrays["is/all"], 1e-6)


@pytest.mark.parametrize("case", ["noisy", "blocky", "independent"])
def test_psnr_and_ssim_are_official(golden, deviation, case):
    arrays = below(golden("psnr_ssim"), case)
    a, b = (rearrange(torch.from_numpy(arrays[key]), "b t h w c -> b t c h w") for key in "ab")
    for name in ("psnr", "ssim"):
        per_frame = getattr(metrics, name)(a, b)
        deviation(per_frame, arrays[f"{name}_per_frame"], 1e-5)
        deviation(per_frame.mean(1), arrays[f"{name}_video"], 1e-5)
