"""InstructPix2Pix (arXiv 2211.09800), from a sentence to an edited picture.

Modules in the order of the paper's pipeline:

- ground: config, files, draws, images, diffusion, guidance, denoising, teaching
- pretrained models: weights, backbone
- section 3.1.1: captions, triplets, triplet_filter
- who writes them: language_model, language_tuning, tuning_files
- its service: language_service, service_run, service_form, service_faults
- in batches: batches, batch_files
- what that costs: ledger, spending
- section 3.1.2: prompt_to_prompt, rendering, filtering, dataset, shards
- section 3.2: surgery, latents, checkpoint, training, ema, parallel
- section 4: editing, baselines, evaluation, figures, widgets

The package ``miniature`` holds the small world and the models trained on it.
"""
