"""InstructPix2Pix (arXiv 2211.09800), from a sentence to an edited picture.

Modules in the order of the paper's pipeline: config, draws, triplets, language_model,
images, diffusion, guidance, prompt_to_prompt, backbone, rendering, filtering, dataset,
surgery, checkpoint, training, editing, baselines, evaluation, figures, widgets, teaching.
The package ``miniature`` holds the small world and the models trained on it.
"""
