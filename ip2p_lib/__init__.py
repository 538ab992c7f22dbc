"""InstructPix2Pix (arXiv 2211.09800), from a sentence to an edited image.

A room for each stage of the paper; each room's ``__init__`` says what to read first:

    triplets     3.1.1   captions become (caption, instruction, edited caption)
    rendering    3.1.2   two captions become two matching images
    filtering    3.1.2   CLIP keeps the pairs in which the edit happened
    dataset      3.1.2   pairs on disk: generated, stored, exported, read back
    training     3.2     the U-Net gets four more channels and learns to edit
    editing      3.2.1   an image and an instruction become an edited image
    evaluation   4.1     edits are measured and compared with other methods

Below them are ``diffusion`` (samplers, guidance, Stable Diffusion, CLIP), ``notebook``
(figures and panels) and the files beside this one. ``miniature`` is a small drawn world
in which the ground truth of every edit is known. A file imports its own room and the
rooms before it in this order: notebook, diffusion, triplets, rendering, filtering,
dataset, editing, evaluation, training.

The paper's symbols, with their names in the code:

    z_t          ``x``, ``noisy``: noisy latent at timestep t, (B, 4, h, w)
    E(c_I)       ``image``, ``condition``: latent of the input image, (B, 4, h, w)
    c_T          ``text``: the instruction, encoded by CLIP, (B, 77, D)
    e(z, c_I, c_T)   ``e_full``: noise prediction with both; ``e_image`` has no text,
                 ``e_uncond`` has neither, (B, 4, h, w)
    s_I, s_T     ``image_scale``, ``text_scale``: the two guidance scales, numbers
    p            ``p``: fraction of sampling steps with shared self-attention, (N,)
    tau          ``tau``: the same for cross-attention (Prompt-to-Prompt), a number
"""
