"""Tests that run with `-m slow` only, each with a faster test that covers the property in every run.

They are listed here instead of marked in their files, because most are one set of parameters of a test whose other sets
run always. `tests/test_slow_tests.py` checks the names.
"""

from __future__ import annotations

# For each file: name of the slow test, with or without its parameters, and the test that covers it: of the same file,
# or `file::test`, or a whole file. The name "" stands for all tests of the file.
SLOW_TESTS: dict[str, dict[str, str]] = {
    "benchmarks/test_accuracy.py": {
        "test_a_finished_row_is_kept_and_a_changed_setting_is_run_again": "benchmarks/test_rows.py"
    },
    "benchmarks/test_foreign_table.py": {
        "test_every_command_that_does_not_train_prints_what_is_expected_and_its_advice_can_be_followed": (
            "test_an_inspection_prints_what_is_expected"
        )
    },
    "benchmarks/test_scores.py": {
        "test_a_model_with_tokens_is_rolled_out_in_its_latent_space_and_on_finer_data": "inference/test_resolution.py",
        "test_a_steady_peer_takes_the_better_way_to_the_finer_grid": "benchmarks/test_field_solver.py",
    },
    "benchmarks/test_training.py": {
        "test_the_same_number_of_steps_gives_the_bits_of_the_librarys_own": (
            "test_documentation.py::test_the_library_page_is_bit_identical_to_the_command"
        )
    },
    "cli/test_export.py": {
        "test_steps_with_a_core_of_transformers_and_context_are_exported_as_well": (
            "test_a_rollout_elsewhere_is_the_runs_own_for_any_batch_and_number_of_steps"
        )
    },
    "cli/test_rollout_command.py": {"test_a_full_disk_is_one_line": "runs/test_checkpoint.py"},
    "cli/test_other_units.py": {
        f"test_commands_train_and_evaluate_the_same_model_in_any_unit[{unit}]": "cli/test_other_units.py"
        for unit in ("large", "small_lengths", "small_fields")
    },
    "cli/test_steady_commands.py": {"test_kill_9_and_again_ends_in_the_same_bits": "trainer/test_resume.py"},
    "cli/test_tracking_commands.py": {"": "tracking/test_wandb_context.py"},
    "cli/test_volume_commands.py": {"": "cli/test_inspect_command.py"},
    "core/test_xla.py": {"test_a_run_without_compilation_is_wholly_so": "core/test_xla.py"},
    "data/test_fixed_points.py": {
        "test_a_run_finds_the_fixed_point_of_fields_that_it_has_not_seen": "cli/test_steady_commands.py"
    },
    "data/test_mixing.py": {"test_far_steps_cost_no_more_than_the_blocks_before_them": "data/test_mixing.py"},
    "distributed/test_processes.py": {"": "distributed/test_mesh.py"},
    "inference/test_state_file.py": {
        "test_channels_are_datasets_of_their_own_and_are_pictured_and_filmed": (
            "test_an_ensemble_has_a_row_a_member_and_the_seed_decides"
        )
    },
    "inference/test_trained_model.py": {
        "test_a_map_over_coefficients_is_a_loop[two tasks]": "test_a_map_over_coefficients_is_a_loop[grid]",
        "test_a_scan_over_steps_is_the_rollout_and_jit_changes_nothing[two tasks]": (
            "test_a_scan_over_steps_is_the_rollout_and_jit_changes_nothing[grid]"
        ),
        "test_float64_goes_in_and_out_and_float32_stays[two tasks]": (
            "test_float64_goes_in_and_out_and_float32_stays[grid]"
        ),
        "test_numpy_arguments_may_be_constants_of_a_jitted_function[two tasks]": (
            "test_numpy_arguments_may_be_constants_of_a_jitted_function[grid]"
        ),
    },
    "losses/test_operator_loss.py": {
        "test_terms_are_the_public_functions_of_the_predictions_and_their_weighted_sum_is_the_loss": (
            "losses/test_formulas.py"
        )
    },
    "models/test_point_options.py": {
        "test_a_periodic_box_has_no_seam[neighbours]": "test_a_periodic_box_has_no_seam[both]",
        "test_a_point_that_is_not_there_is_never_heard[swarm-neighbours]": (
            "test_a_point_that_is_not_there_is_never_heard[swarm-both]"
        ),
        "test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[still-queries]": (
            "test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[still-radius]"
        ),
        "test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[swarm-neighbours]": (
            "test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later[swarm-both]"
        ),
        "test_blocks_that_are_computed_again_change_no_parameter_and_no_value[queries]": (
            "test_blocks_that_are_computed_again_change_no_parameter_and_no_value[radius]"
        ),
        "test_points_in_another_order_give_the_same_points_in_that_order[swarm-neighbours]": (
            "test_points_in_another_order_give_the_same_points_in_that_order[swarm-both]"
        ),
    },
    "models/test_precision.py": {
        "test_parameters_optimizer_average_gradients_and_losses_stay_float32[pdet_unet]": (
            "test_parameters_optimizer_average_gradients_and_losses_stay_float32[pdet_stack]"
        )
    },
    "models/test_recompute.py": {
        "test_eight_layers_take_at_least_two_fifths_less_memory_for_a_step": (
            "test_values_and_gradients_are_the_same[spectral-block]"
        ),
        "test_values_and_gradients_are_the_same[pdet_stack-block]": (
            "test_values_and_gradients_are_the_same[spectral-block]"
        ),
        "test_values_and_gradients_are_the_same[pdet_unet-block]": (
            "test_values_and_gradients_are_the_same[spectral-block]"
        ),
    },
    "reliability/test_crash_sequences.py": {
        "test_every_fault_of_a_life_has_its_answer_and_costs_no_bit[kills]": (
            "trainer/test_resume.py::test_sigterm_saves_the_step_it_is_at_and_goes_on_from_there"
        )
    },
    "reliability/test_scenarios.py": {
        "test_a_fault_from_outside_has_its_answer[all_checkpoints_damaged]": (
            "trainer/test_resume.py::test_when_no_checkpoint_can_be_read_nothing_starts_again_from_scratch"
        ),
        "test_a_fault_from_outside_has_its_answer[nan_batches]": (
            "trainer/test_loop.py::test_a_run_that_diverges_stops_with_its_own_error_and_saves_nothing_that_is_not_finite"
        ),
        "test_a_fault_from_outside_has_its_answer[newest_checkpoint_gone]": (
            "runs/test_checkpoint.py::test_a_commit_that_cannot_be_read_is_set_aside_where_there_is_another"
        ),
    },
    "reliability/test_secrets.py": {
        "test_the_key_of_wandb_is_in_no_file_and_in_no_output[refuses]": "tracking/test_wandb_writer.py"
    },
    "rollout/test_flow_sampler.py": {
        "test_a_corrector_with_a_core_of_attention_is_trained_sampled_and_distilled": (
            "test_a_trained_corrector_samples_the_errors_of_its_predictor"
        ),
        "test_a_student_does_in_one_step_what_its_teacher_does_in_four": (
            "test_the_loss_is_what_lies_between_one_step_and_the_end_of_the_teachers"
        ),
    },
    "runs/test_damaged_best.py": {
        "test_another_one_that_is_damaged_is_no_matter_to_who_reads[6]": (
            "test_where_none_is_sound_it_is_one_error_and_nothing_is_moved"
        ),
        "test_who_trains_sets_it_aside_and_who_reads_is_told_ever_after[metric is no JSON]": (
            "test_who_reads_takes_the_best_of_the_others_and_says_so[metric is no JSON]"
        ),
        "test_who_trains_sets_it_aside_and_who_reads_is_told_ever_after[missing]": (
            "test_who_reads_takes_the_best_of_the_others_and_says_so[missing]"
        ),
    },
    "simulate/test_finite_volumes.py": {
        "test_a_breaking_dam_is_stokers_along_either_axis[1]": "test_a_breaking_dam_is_stokers_along_either_axis[0]"
    },
    "test_documentation.py": {"test_the_page_on_your_own_data_runs_as_it_stands": "data/test_layouts.py"},
    "trainer/test_channels.py": {
        "test_three_channels_are_trained_evaluated_and_rolled_out": "trainer/test_several_tasks.py"
    },
    "trainer/test_correctors.py": {
        "test_a_regression_is_trained_evaluated_and_rolled_out_and_draws_nothing": "losses/test_diffusion.py",
        "test_a_rollout_with_the_corrector_is_an_ensemble_by_seed[consistency_distill]": (
            "test_a_rollout_with_the_corrector_is_an_ensemble_by_seed[diffusion_residual]"
        ),
        "test_a_student_is_taught_by_its_own_average": (
            "rollout/test_flow_sampler.py::test_a_student_draws_its_own_samples_and_leaves_the_expected_error_to_its_teacher"
        ),
        "test_candidates_that_are_asked_for_and_not_drawn_are_told_of": "evaluation/test_best_of_n.py",
        "test_micro_batches_of_a_corrector_are_one_batch": "training/test_gradients.py",
        "test_the_command_for_all_stages_evaluates_each_and_goes_on_with_what_is_missing": (
            "test_a_finished_run_is_left_as_it_is"
        ),
        "test_the_loss_has_a_gradient_for_every_parameter_and_none_for_parents[diffusion_residual]": (
            "test_the_loss_has_a_gradient_for_every_parameter_and_none_for_parents[consistency_distill]"
        ),
        "test_two_steps_and_two_more_are_four_to_the_bit[consistency_distill]": "trainer/test_resume.py",
        "test_two_steps_and_two_more_are_four_to_the_bit[diffusion_residual]": "trainer/test_resume.py",
    },
    "trainer/test_fold_runs.py": {
        "test_a_fold_of_other_data_than_the_predictor_s_is_refused[tiny_steady]": (
            "test_a_fold_of_other_data_than_the_predictor_s_is_refused[tiny]"
        ),
        "test_a_predictor_that_was_fitted_to_another_fold_is_refused": "data/test_folds.py",
        "test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit": "data/test_folds.py",
        "test_no_stage_of_a_run_reads_of_the_other_side": "data/test_folds.py",
        "test_weights_that_were_fitted_to_what_is_held_out_are_refused": "data/test_folds.py",
    },
    "trainer/test_training_on_unequal_splits.py": {
        "test_a_run_is_validated_and_evaluated_on_longer_trajectories_than_it_is_trained_on": (
            "data/test_frames_per_split.py"
        )
    },
    "trainer/test_frozen_codec.py": {
        "test_a_loss_on_latents_is_the_one_on_fields_with_its_codec_held[unrolled]": (
            "test_a_loss_on_latents_is_the_one_on_fields_with_its_codec_held[one step]"
        ),
        "test_a_run_goes_on_with_its_own_latents_alone": "data/test_latent_cache.py",
        "test_an_interrupted_training_ends_in_the_same_bits": "trainer/test_resume.py",
        "test_another_operator_starts_fresh_on_the_same_codec": (
            "test_training_leaves_the_codec_as_it_was_to_the_bit[overrides0]"
        ),
        "test_micro_batches_of_latents_are_one_batch": "training/test_gradients.py",
        "test_several_devices_train_on_latents_as_one_does": (
            "distributed/test_mesh.py::test_ten_steps_are_the_same_on_every_layout_and_each_holds_its_part"
        ),
        "test_the_commands_print_and_end_as_they_should": (
            "test_training_leaves_the_codec_as_it_was_to_the_bit[overrides0]"
        ),
        "test_training_leaves_the_codec_as_it_was_to_the_bit[overrides1]": (
            "test_training_leaves_the_codec_as_it_was_to_the_bit[overrides0]"
        ),
    },
    "trainer/test_loop.py": {
        "test_epochs_since_the_best_are_right_after_a_finished_run_was_made_longer": (
            "trainer/test_resume.py::test_a_longer_run_goes_on_from_where_the_shorter_one_stopped"
        ),
        "test_weights_of_another_run_come_with_any_optimizer_and_the_same_command_goes_on": "runs/test_checkpoint.py",
    },
    "trainer/test_out_of_memory_runs.py": {
        "test_a_later_process_starts_with_what_fitted_on_that_device": "trainer/test_oom.py",
        "test_a_run_may_go_on_in_other_micro_batches_of_the_same_windows": "training/test_gradients.py",
        "test_a_run_whose_memory_runs_out_ends_where_an_uninterrupted_one_does": "trainer/test_oom.py",
        "test_measuring_hands_its_halvings_on": "trainer/test_oom.py",
        "test_weights_of_another_run_can_begin_twice": "trainer/test_oom.py",
    },
    "trainer/test_point_option_runs.py": {"": "models/test_point_options.py"},
    "trainer/test_point_runs.py": {
        "test_a_resumed_run_ends_in_the_same_bits": (
            "trainer/test_several_tasks.py::test_a_resumed_run_ends_in_the_same_bits"
        )
    },
    "trainer/test_records.py": {
        "test_per_task_records_change_no_bit_of_the_run": (
            "trainer/test_records.py::test_the_records_carry_what_a_curve_needs"
        ),
        "test_two_runs_are_bit_equal_in_state_and_records_but_for_times": (
            "test_documentation.py::test_the_library_page_is_bit_identical_to_the_command"
        ),
    },
    "trainer/test_resume.py": {
        "test_a_run_by_seconds_that_is_killed_ends_in_the_bits_of_one_by_as_many_steps": "training/test_run_length.py"
    },
    "trainer/test_steady_correctors.py": {"": "trainer/test_correctors.py"},
    "training/test_cuda_lowering.py": {
        "test_a_steady_step_lowers_for_cuda": "test_a_transient_step_lowers_for_cuda[operator]",
        "test_a_transient_step_lowers_for_cuda[consistency_distill]": "test_a_transient_step_lowers_for_cuda[operator]",
        "test_a_transient_step_lowers_for_cuda[diffusion_residual]": "test_a_transient_step_lowers_for_cuda[operator]",
        "test_products_have_all_bits_unless_fewer_are_asked_for[pdet_stack-fp32-True]": (
            "test_products_have_all_bits_unless_fewer_are_asked_for[spectral-fp32-True]"
        ),
        "test_products_have_all_bits_unless_fewer_are_asked_for[pdet_stack-tf32-False]": (
            "test_products_have_all_bits_unless_fewer_are_asked_for[spectral-tf32-False]"
        ),
        "test_the_other_operators_lower_for_cuda": "test_a_transient_step_lowers_for_cuda[operator]",
    },
    "training/test_gradients.py": {
        "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[2]": (
            "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
        ),
        "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[5]": (
            "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
        ),
        "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[8]": (
            "test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch[3]"
        ),
    },
    "training/test_multi_step.py": {
        "test_a_run_that_diverges_within_a_call_ends_as_one_of_single_steps": (
            "trainer/test_loop.py::test_a_run_that_diverges_stops_with_its_own_error_and_saves_nothing_that_is_not_finite"
        )
    },
    "training/test_run_length.py": {
        "test_the_plan_is_on_file_before_the_first_step[diffusion_residual]": (
            "test_the_plan_is_on_file_before_the_first_step[operator]"
        ),
        "test_the_plan_is_on_file_before_the_first_step[steady_prior]": (
            "test_the_plan_is_on_file_before_the_first_step[operator]"
        ),
    },
    "training/test_validation_groups.py": {
        "test_metrics_do_not_depend_on_the_groups[tiny_steady.yaml-steady_prior]": (
            "test_metrics_do_not_depend_on_the_groups[tiny.yaml-operator]"
        )
    },
}


def is_slow(node_id: str) -> bool:
    """Return whether the table lists a test.

    Args:
        node_id: Identifier of the test in pytest, `tests/file::test[parameters]`.
    """
    file, _, test = node_id.removeprefix("tests/").partition("::")
    return not {"", test, test.partition("[")[0]}.isdisjoint(SLOW_TESTS.get(file, {}))
