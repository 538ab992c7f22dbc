"""InstructPix2Pix (arXiv 2211.09800), from a sentence to an edited image.

A room for each stage of the paper; each room's ``__init__`` says what to read first:

    triplets     3.1.1   captions become (caption, instruction, edited caption)
    rendering    3.1.2   two captions become two matching images
    filtering    3.1.2   CLIP keeps the pairs in which the edit happened
    dataset      3.1.2   pairs on disk: generated, stored, exported, read back
    training     3.2     the U-Net gets four more channels and learns to edit
    editing      3.2.1   an image and an instruction become an edited image
    evaluation   4.1     edits are measured and compared with other methods

``diffusion`` (samplers, guidance, Stable Diffusion, CLIP) and ``notebook`` (figures,
panels) are below them; ``miniature`` is a small drawn world in which the ground truth
of every edit is known; the files beside this one serve all. A file imports its own room
and the rooms before it in this order: these files, notebook, diffusion, triplets,
rendering, filtering, dataset, editing, evaluation, training. ``miniature`` may import
the rooms up to filtering, and no other room imports it.

The paper's symbols, by name in the code, shape and file; latents of B examples are
(B, 4, h, w):

    z            x0              clean latent, unit variance    diffusion/schedule
    z_t          x, x_t          noisy latent                   diffusion/schedule
    t            t               (B,) timestep, 0 to 999        diffusion/schedule
    eps          noise           latent of unit normal noise    diffusion/schedule
    E(c_I)       condition       latent of the input image      training/latents
    c_T          text            (B, 77, D) CLIP hidden states  diffusion/guidance
    no c_T       null_text       (1, 77, D) of the empty text   diffusion/guidance
    e(z_t, c_I, c_T)  e_full     fully conditional prediction   diffusion/guidance
    e(z_t, c_I, -)    e_image    image-conditional prediction   diffusion/guidance
    e(z_t, -, -)      e_uncond   unconditional prediction       diffusion/guidance
    s_I          image_scale     number or (B,), 1 to 1.5       diffusion/guidance
    s_T          text_scale      number or (B,), 5 to 10        diffusion/guidance
    p            p               share of steps with shared self-attention, in [0, 1];
                                 ``p2p_threshold`` in files     rendering/candidates
    tau          tau             the same for cross-attention   rendering/word_edits
"""
