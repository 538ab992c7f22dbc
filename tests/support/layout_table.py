"""The place of every module: what it may import, and where it is tested."""

# Who may import whom inside ip2p_lib; nothing else is allowed. For its types alone,
# under TYPE_CHECKING, a module may also name config and whatever lies below it.
IMPORTS = {
    "config": "",
    "draws": "",
    "transfer": "",
    "attention_kernels": "",
    "parallel": "",
    "files": "",
    "triplets": "files",
    "captions": "",
    "triplet_filter": "config triplets",
    "ledger": "",
    "spending": "config ledger",
    "service_form": "triplets",
    "service_faults": "draws",
    "tuning_files": "triplets service_form",
    "asking": "triplets spending service_form",
    "service_run": "triplets ledger spending service_form service_faults asking",
    "language_service": "triplets ledger spending asking service_faults service_run",
    "language_server": "",
    "moderation": "triplet_filter service_form service_faults",
    "model_dates": "spending service_form service_faults",
    "batch_files": "files ledger spending service_form",
    "batches": (
        "triplets ledger spending service_form service_faults service_run"
        " batch_files language_service"
    ),
    "lora": "draws",
    "adapter_files": "config files lora",
    "language_loading": "config backbone weights adapter_files",
    "attempts": "triplets",
    "language_model": (
        "attempts config draws triplets language_loading language_service"
    ),
    "images": "",
    "diffusion": "draws",
    "guidance": "draws",
    "denoising": "diffusion guidance",
    "prompt_to_prompt": "draws",
    "word_alignment": "",
    "word_edits": "backbone word_alignment",
    "cross_attention": "prompt_to_prompt word_edits",
    "paired_sampling": (
        "diffusion stepping prompt_to_prompt cross_attention word_edits"
    ),
    "language_tuning": "draws triplets",
    "weights": "",
    "backbone": "attention_kernels config images diffusion weights",
    "candidates": "triplets draws word_edits",
    "rendering": (
        "candidates draws diffusion guidance denoising backbone word_edits"
        " paired_sampling"
    ),
    "stepping": "diffusion",
    "walks": (
        "candidates draws diffusion denoising prompt_to_prompt backbone rendering"
        " stepping transfer"
    ),
    "trees": "triplets draws rendering stepping backbone walks",
    "slots": "backbone rendering stepping trees walks",
    "filtering": "attention_kernels images",
    "calibration": "filtering",
    "rejection": "calibration filtering slots",
    "disk_faults": "",
    "folders": "disk_faults",
    "pairs": "images triplets",
    "shards": "disk_faults files pairs",
    "dataset": "images pairs shards",
    "pair_validation": "dataset pairs shards",
    "pair_rows": "dataset images pairs",
    "pair_parquet": "dataset folders pair_rows pairs",
    "pair_folders": "dataset folders images pairs",
    "own_pictures": "dataset images pairs",
    "pair_survey": "pairs",
    "dataset_card": "dataset pair_survey shards",
    "rendering_run": (
        "config files triplets images backbone rendering slots filtering rejection"
        " pairs shards dataset run_lock trees"
    ),
    "surgery": "",
    "checkpoint": "files disk_faults",
    "latents": "draws transfer",
    "economy": "",
    "precision": "backbone",
    "loss_scale": "",
    "adamw": "",
    "ema": "",
    "train_state": "adamw economy ema loss_scale",
    "editor_lora": "adapter_files files lora surgery",
    "memory_trace": "",
    "training_time": "",
    "compilation": "compiled_layers",
    "compiled_layers": "attention_kernels",
    "memory_plan": "adamw economy editor_lora memory_trace",
    "micro_batches": "parallel train_state",
    "loss_bands": "diffusion",
    "training": (
        "draws diffusion guidance latents economy checkpoint parallel train_state"
        " micro_batches loss_bands"
    ),
    "stored_latents": (
        "config images backbone pairs dataset checkpoint latents parallel"
    ),
    "interruption": "",
    "run_lock": "folders parallel",
    "recovery": (
        "files disk_faults parallel checkpoint train_state training interruption"
        " run_lock loss_bands"
    ),
    "editing": "config draws images diffusion guidance denoising backbone weights",
    "baselines": "draws images diffusion guidance denoising backbone",
    "imagic": "backbone baselines diffusion draws images",
    "text2live": "draws filtering images",
    "results": "shards",
    "evaluation": "dataset filtering editing baselines results",
    "validation": "editing evaluation filtering files parallel train_state training",
    "model_card": "config loss_bands validation",
    "publishing": "editor_lora folders train_state",
    "figure_style": "",
    "figures": "images figure_style",
    "filter_figures": "calibration figure_style",
    "panels": "",
    "tensorboard_log": "loss_bands training validation",
    "training_figures": "figures files loss_bands training validation",
    "widgets": "images editing figures panels",
    "threshold_widget": "calibration filter_figures filtering panels",
    "teaching": "",
}
# Split off a stage to keep files short, and tested with it.
PARTS = {
    "figure_style": "figures",
    "panels": "widgets",
    "language_loading": "language_model",
    "language_tuning": "language_model",
    "shards": "dataset",
    "pairs": "dataset",
    "pair_rows": "pair_parquet",
    "pair_survey": "dataset_card",
    "language_service": "language_model",
    "service_form": "language_service",
    "service_faults": "language_service",
    "service_run": "language_service",
    "batch_files": "batches",
    "denoising": "guidance",
    "candidates": "rendering",
    "stepping": "slots",
    "trees": "slots",
    "walks": "slots",
    "weights": "backbone",
    "latents": "training",
    "ema": "training",
    "train_state": "training",
    "micro_batches": "training",
    "publishing": "model_card",
    "economy": "memory_plan",
    "loss_scale": "precision",
    "interruption": "recovery",
    "run_lock": "recovery",
}
# Slow to import, and not on every machine of use: the only modules that need them.
SHOWS = {
    "matplotlib": {"figure_style", "figures", "filter_figures"},
    "ipywidgets": {"panels", "widgets", "threshold_widget"},
}
