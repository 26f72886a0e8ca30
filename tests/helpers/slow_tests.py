"""Tests that run with `-m slow` only, each with the faster test that covers the property in every run.

They are here, and not marked where they stand, because most are one set of parameters of a test whose others stay.
`tests/test_slow_tests.py` checks that their functions exist.
"""

from __future__ import annotations

SLOW = {
    "reliability/test_crash_sequences.py::test_every_fault_of_a_life_has_its_answer_and_costs_no_bit[kills]": (
        "trainer/test_resume.py::test_sigterm_saves_the_step_it_is_at_and_goes_on_from_there"
    ),
    "reliability/test_scenarios.py::test_a_fault_from_outside_has_its_answer[nan_batches]": (
        "trainer/test_loop.py::test_a_run_that_diverges_stops_with_its_own_error_and_saves_nothing_that_is_not_finite"
    ),
    "reliability/test_scenarios.py::test_a_fault_from_outside_has_its_answer[all_checkpoints_damaged]": (
        "trainer/test_resume.py::test_when_no_checkpoint_can_be_read_nothing_starts_again_from_scratch"
    ),
    "reliability/test_secrets.py::test_the_key_of_wandb_is_in_no_file_and_in_no_output[refuses]": (
        "tracking/test_wandb_writer.py"
    ),
    "trainer/test_frozen_codec.py::test_several_devices_train_on_latents_as_one_does": (
        "distributed/test_mesh.py::test_ten_steps_are_the_same_on_every_layout_and_each_holds_its_part"
    ),
    "trainer/test_frozen_codec.py::test_micro_batches_of_latents_are_one_batch": "training/test_gradients.py",
    "trainer/test_frozen_codec.py::test_an_interrupted_training_ends_in_the_same_bits": "trainer/test_resume.py",
    "trainer/test_frozen_codec.py::test_a_run_goes_on_with_its_own_latents_alone": "data/test_latent_cache.py",
    "trainer/test_frozen_codec.py::test_training_leaves_the_codec_as_it_was_to_the_bit[overrides1]": (
        "trainer/test_frozen_codec.py::test_training_leaves_the_codec_as_it_was_to_the_bit[overrides0]"
    ),
    "trainer/test_frozen_codec.py::test_another_operator_starts_fresh_on_the_same_codec": (
        "trainer/test_frozen_codec.py::test_the_commands_print_and_end_as_they_should"
    ),
    "trainer/test_resume.py::test_a_run_by_seconds_that_is_killed_ends_in_the_bits_of_one_by_as_many_steps": (
        "training/test_run_length.py"
    ),
    "trainer/test_correctors.py::test_the_command_for_all_stages_evaluates_each_and_goes_on_with_what_is_missing": (
        "trainer/test_correctors.py::test_a_finished_run_is_left_as_it_is"
    ),
    "trainer/test_correctors.py::test_a_rollout_with_the_corrector_is_an_ensemble_by_seed[consistency_distill]": (
        "trainer/test_correctors.py::test_a_rollout_with_the_corrector_is_an_ensemble_by_seed[diffusion_residual]"
    ),
    "trainer/test_correctors.py::test_two_steps_and_two_more_are_four_to_the_bit[diffusion_residual]": (
        "trainer/test_fold_runs.py::test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit[tiny]"
    ),
    "trainer/test_correctors.py::test_two_steps_and_two_more_are_four_to_the_bit[consistency_distill]": (
        "trainer/test_fold_runs.py::test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit[tiny]"
    ),
    "trainer/test_correctors.py::"
    "test_the_loss_has_a_gradient_for_every_parameter_and_none_for_parents[diffusion_residual]": (
        "trainer/test_correctors.py::test_micro_batches_of_a_corrector_are_one_batch[diffusion_residual]"
    ),
    "trainer/test_correctors.py::test_micro_batches_of_a_corrector_are_one_batch[consistency_distill]": (
        "trainer/test_correctors.py::test_micro_batches_of_a_corrector_are_one_batch[diffusion_residual]"
    ),
    "trainer/test_correctors.py::test_a_regression_is_trained_evaluated_and_rolled_out_and_draws_nothing": (
        "losses/test_diffusion.py"
    ),
    "trainer/test_correctors.py::test_a_student_is_taught_by_its_own_average": (
        "rollout/test_flow_sampler.py::"
        "test_a_student_draws_its_own_samples_and_leaves_the_expected_error_to_its_teacher"
    ),
    "trainer/test_point_runs.py::test_a_resumed_run_ends_in_the_same_bits": (
        "trainer/test_several_tasks.py::test_a_resumed_run_ends_in_the_same_bits"
    ),
    "trainer/test_point_option_runs.py::test_micro_batches_are_one_batch_and_bfloat16_is_near[queries]": (
        "trainer/test_point_option_runs.py::test_micro_batches_are_one_batch_and_bfloat16_is_near[neighbours]"
    ),
    "trainer/test_point_option_runs.py::test_a_run_beats_persistence_and_rolls_out[queries]": (
        "trainer/test_point_option_runs.py::test_a_run_beats_persistence_and_rolls_out[neighbours]"
    ),
    "trainer/test_point_option_runs.py::test_a_dry_run_costs_a_step": "trainer/test_dry_run.py",
    "trainer/test_records.py::test_per_task_records_change_no_bit_of_the_run": (
        "trainer/test_records.py::test_two_runs_are_bit_equal_in_state_and_records_but_for_times"
    ),
    "trainer/test_fold_runs.py::test_no_stage_of_a_run_reads_of_the_other_side[tiny_steady]": (
        "trainer/test_fold_runs.py::test_no_stage_of_a_run_reads_of_the_other_side[tiny]"
    ),
    "trainer/test_fold_runs.py::"
    "test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit[tiny_steady]": (
        "trainer/test_fold_runs.py::test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit[tiny]"
    ),
    "trainer/test_fold_runs.py::test_a_predictor_that_was_fitted_to_another_fold_is_refused[tiny_steady-0.0]": (
        "trainer/test_fold_runs.py::test_a_predictor_that_was_fitted_to_another_fold_is_refused[tiny-0.0]"
    ),
    "trainer/test_fold_runs.py::test_a_predictor_that_was_fitted_to_another_fold_is_refused[tiny_steady-0.5]": (
        "trainer/test_fold_runs.py::test_a_predictor_that_was_fitted_to_another_fold_is_refused[tiny-0.5]"
    ),
    "trainer/test_fold_runs.py::test_weights_that_were_fitted_to_what_is_held_out_are_refused[tiny_steady]": (
        "trainer/test_fold_runs.py::test_weights_that_were_fitted_to_what_is_held_out_are_refused[tiny]"
    ),
    "trainer/test_channels.py::test_three_channels_are_trained_evaluated_and_rolled_out[cfd1d]": (
        "trainer/test_channels.py::test_three_channels_are_trained_evaluated_and_rolled_out[swe2d]"
    ),
    "trainer/test_out_of_memory_runs.py::test_a_later_process_starts_with_what_fitted_on_that_device": (
        "trainer/test_oom.py"
    ),
    "trainer/test_out_of_memory_runs.py::test_weights_of_another_run_can_begin_twice": "trainer/test_oom.py",
    "trainer/test_out_of_memory_runs.py::test_measuring_hands_its_halvings_on": "trainer/test_oom.py",
    "trainer/test_out_of_memory_runs.py::test_a_run_may_go_on_in_other_micro_batches_of_the_same_windows": (
        "training/test_gradients.py"
    ),
    "trainer/test_out_of_memory_runs.py::"
    "test_a_run_whose_memory_runs_out_ends_where_an_uninterrupted_one_does[in reading]": (
        "trainer/test_out_of_memory_runs.py::"
        "test_a_run_whose_memory_runs_out_ends_where_an_uninterrupted_one_does[state alive]"
    ),
    "trainer/test_loop.py::test_weights_of_another_run_come_with_any_optimizer_and_the_same_command_goes_on": (
        "runs/test_checkpoint.py"
    ),
    "rollout/test_flow_sampler.py::test_a_student_does_in_one_step_what_its_teacher_does_in_four[average]": (
        "rollout/test_flow_sampler.py::test_a_student_does_in_one_step_what_its_teacher_does_in_four[teacher]"
    ),
    "rollout/test_flow_sampler.py::test_a_corrector_with_a_core_of_attention_is_trained_sampled_and_distilled": (
        "rollout/test_flow_sampler.py::test_a_trained_corrector_samples_the_errors_of_its_predictor"
    ),
    "runs/test_damaged_best.py::test_who_trains_sets_it_aside_and_who_reads_is_told_ever_after[missing]": (
        "runs/test_damaged_best.py::test_who_reads_takes_the_best_of_the_others_and_says_so[missing]"
    ),
    "runs/test_damaged_best.py::test_who_trains_sets_it_aside_and_who_reads_is_told_ever_after[metric is no JSON]": (
        "runs/test_damaged_best.py::test_who_reads_takes_the_best_of_the_others_and_says_so[metric is no JSON]"
    ),
    "runs/test_damaged_best.py::test_another_one_that_is_damaged_is_no_matter_to_who_reads[6]": (
        "runs/test_damaged_best.py::test_where_none_is_sound_it_is_one_error_and_nothing_is_moved"
    ),
    "cli/test_steady_commands.py::test_kill_9_and_again_ends_in_the_same_bits": "trainer/test_resume.py",
    "models/test_recompute.py::test_values_and_gradients_are_the_same[pdet_unet-block]": (
        "models/test_recompute.py::test_values_and_gradients_are_the_same[pdet_stack-block]"
    ),
    "training/test_run_length.py::test_the_plan_is_on_file_before_the_first_step[diffusion_residual]": (
        "training/test_run_length.py::test_the_plan_is_on_file_before_the_first_step[operator]"
    ),
    "training/test_run_length.py::test_the_plan_is_on_file_before_the_first_step[steady_prior]": (
        "training/test_run_length.py::test_the_plan_is_on_file_before_the_first_step[operator]"
    ),
    "models/test_point_options.py::test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[swarm-neighbours]": (  # noqa: E501
        "models/test_point_options.py::test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[swarm-both]"
    ),
    "models/test_point_options.py::test_points_in_another_order_give_the_same_points_in_that_order[swarm-neighbours]": (
        "models/test_point_options.py::test_points_in_another_order_give_the_same_points_in_that_order[swarm-both]"
    ),
    "models/test_point_options.py::test_a_point_that_is_not_there_is_never_heard[swarm-neighbours]": (
        "models/test_point_options.py::test_a_point_that_is_not_there_is_never_heard[swarm-both]"
    ),
    "models/test_point_options.py::test_a_periodic_box_has_no_seam[neighbours]": (
        "models/test_point_options.py::test_a_periodic_box_has_no_seam[both]"
    ),
    "models/test_point_options.py::test_blocks_that_are_computed_again_change_no_parameter_and_no_value[queries]": (
        "models/test_point_options.py::test_blocks_that_are_computed_again_change_no_parameter_and_no_value[radius]"
    ),
    "inference/test_trained_model.py::test_float64_goes_in_and_out_and_float32_stays[two tasks]": (
        "inference/test_trained_model.py::test_float64_goes_in_and_out_and_float32_stays[grid]"
    ),
    "inference/test_trained_model.py::test_a_map_over_coefficients_is_a_loop[two tasks]": (
        "inference/test_trained_model.py::test_a_map_over_coefficients_is_a_loop[grid]"
    ),
    "inference/test_trained_model.py::test_a_scan_over_steps_is_the_rollout_and_jit_changes_nothing[two tasks]": (
        "inference/test_trained_model.py::test_a_scan_over_steps_is_the_rollout_and_jit_changes_nothing[grid]"
    ),
    "inference/test_trained_model.py::test_numpy_arguments_may_be_constants_of_a_jitted_function[two tasks]": (
        "inference/test_trained_model.py::test_numpy_arguments_may_be_constants_of_a_jitted_function[grid]"
    ),
    "training/test_cuda_lowering.py::test_products_have_all_bits_unless_fewer_are_asked_for[pdet_stack-tf32-False]": (
        "training/test_cuda_lowering.py::test_products_have_all_bits_unless_fewer_are_asked_for[spectral-tf32-False]"
    ),
    "training/test_cuda_lowering.py::test_the_other_operators_lower_for_cuda[pdet_unet]": (
        "training/test_cuda_lowering.py::test_the_other_operators_lower_for_cuda[pdet_stack]"
    ),
    "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[2]": (
        "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
    ),
    "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[5]": (
        "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
    ),
    "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[8]": (
        "training/test_gradients.py::test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
    ),
    "losses/test_operator_loss.py::"
    "test_terms_are_the_public_functions_of_the_predictions_and_their_weighted_sum_is_the_loss": (
        "losses/test_formulas.py"
    ),
    "simulate/test_finite_volumes.py::test_a_breaking_dam_is_stokers_along_either_axis[1]": (
        "simulate/test_finite_volumes.py::test_a_breaking_dam_is_stokers_along_either_axis[0]"
    ),
    "benchmarks/test_accuracy.py::test_a_finished_row_is_kept_and_a_changed_setting_is_run_again": (
        "benchmarks/test_rows.py"
    ),
    "test_documentation.py::test_the_page_on_your_own_data_runs_as_it_stands": "data/test_layouts.py",
}
