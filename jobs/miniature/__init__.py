"""Everything that trains the shipped networks, each a command with a time budget.

In order (``data/models/README.md`` says what each took):

    python -m jobs.miniature.pretrain vae                  the autoencoder
    python -m jobs.miniature.train_judge                   the judge, on its images
    python -m jobs.miniature.pretrain clip                 CLIP, hence the text encoder
    python -m jobs.miniature.pretrain unet                 text to image
    python -m jobs.miniature.pretrain_language grammar written
    python -m jobs.miniature.make_pairs write generate     section 3.1
    python -m jobs.miniature.train_editor train measure    section 3.2
"""
