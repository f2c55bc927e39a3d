// Chooses the instruction path: the best one that the processor supports, or the one that TRTLLM_PT_ISA names.
#include <c10/util/Exception.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "ops.h"
#include "paths.h"

namespace trtllm_pt {

// Returns whether the processor has AMX with bfloat16, and Linux (5.16 or newer) lets this process's threads use it.
// The symbol is weak because tests replace it with an emulator of the instructions.
extern "C" __attribute__((weak, visibility("default"))) bool trtllm_pt_may_use_tiles() {
  constexpr unsigned kTiles = 1u << 24, kBFloat16 = 1u << 22;  // CPUID leaf 7, EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kBFloat16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

namespace {

std::vector<const Path*> available_paths() {  // in ascending order of preference
  std::vector<const Path*> found;
  if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")) found.push_back(&portable::table);
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
            __builtin_cpu_supports("bmi2");
  if (v3) found.push_back(&avx2::table);
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl");
  if (v4) found.push_back(&avx512::table);
  if (v4 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vnni"))
    found.push_back(&avx512_bf16::table);
  return found;
}

const Path& choose_path() {
  auto found = available_paths();
  TORCH_CHECK(!found.empty(), "this machine's processor lacks SSE4.2, which the trtllm_pt ops need at least");
  const char* wanted = std::getenv("TRTLLM_PT_ISA");
  if (!wanted || !*wanted) return *found.back();
  // AMX is used only if it is named, until the tests have run on a processor that has it.
  if (found.back() == &avx512_bf16::table && trtllm_pt_may_use_tiles()) found.push_back(&avx512_amx::table);
  std::string names;
  for (const Path* path : found) {
    if (path->name == std::string(wanted)) return *path;
    names += (names.empty() ? "" : ", ") + std::string(path->name);
  }
  TORCH_CHECK(false, "TRTLLM_PT_ISA=", wanted, " is not an instruction path of this machine; it has ", names);
}

}  // namespace

const Path& path() {
  static const Path& chosen = choose_path();
  return chosen;
}

std::string isa() { return path().name; }

}  // namespace trtllm_pt
