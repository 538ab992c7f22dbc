"""InstructPix2Pix (arXiv 2211.09800), from a sentence to an edited picture.

Modules in the order of the paper's pipeline:

- ground: config, draws, transfer, images, diffusion, guidance, denoising, teaching
- what is whole or not there: files, folders, disk_faults
- pretrained models: weights, backbone, lora, adapter_files
- section 3.1.1: captions, triplets, triplet_filter
- who writes them: language_model, attempts, language_loading
- and learns to: language_tuning, tuning_files
- a service for it: language_service, asking, service_run, service_form, service_faults
- beside it: moderation, language_server
- in batches: batches, batch_files
- what that costs, and how long it is there: ledger, spending, model_dates
- what two captions share: word_alignment, word_edits
- and two pictures: prompt_to_prompt, cross_attention, paired_sampling
- section 3.1.2: candidates, rendering, filtering, calibration, dataset, shards, pairs
- the same, faster: stepping, walks, trees, slots, rejection
- and for weeks: rendering_run
- its pairs for others, and theirs: pair_parquet, pair_rows, pair_folders, own_pictures
- what they are worth: pair_validation, pair_survey, dataset_card
- section 3.2: surgery, latents, training, train_state, ema, micro_batches, parallel
- watched meanwhile, kept and handed on: loss_bands, validation, training_figures
- what it reads, what it leaves: stored_latents, model_card, publishing, tensorboard_log
- so that it fits a card: memory_plan, memory_trace, economy, precision, loss_scale
- and with what it trains then, how long: adamw, editor_lora, training_time
- and faster on a GPU: compilation, compiled_layers, attention_kernels
- so that no stop loses a run: checkpoint, recovery, interruption, run_lock
- section 4: editing, baselines, imagic, text2live, results, evaluation
- to look at: figures, figure_style, filter_figures, panels, widgets, threshold_widget

The package ``miniature`` holds the small world and the models trained on it.
"""
