// Preloaded into a process, it carries out the instructions of AMX-TILE and AMX-BF16 that the processor refuses: the
// library's own code for AMX runs unchanged on a machine with AVX-512. What a real one faults on ends the process.
//
// Source of formats, checks and arithmetic: Intel SDM volume 2, instruction pages and exception classes AMX-E1 to E6.
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

struct Tile {
  alignas(64) uint8_t data[16][64];
  int rows, row_bytes;
};

// As on the processor, a thread's own, and without a shape until LDTILECFG.
thread_local Tile tiles[8];
thread_local bool shaped;
thread_local int times_shaped;

[[noreturn]] void fault(const char* what) {
  write(2, "AMX emulator: ", 14);
  write(2, what, strlen(what));
  write(2, "\n", 1);
  abort();
}

void check(bool right, const char* what) {
  if (!right) fault(what);
}

void release() {
  memset(tiles, 0, sizeof tiles);
  shaped = false;
}

void load_shapes(const uint8_t* from) {
  release();
  check(from[0] == 1 && from[1] == 0, "LDTILECFG: palette must be 1, start_row 0");
  for (int i = 2; i < 64; i++)
    check((i >= 16 && i < 32) || (i >= 48 && i < 56) || from[i] == 0, "LDTILECFG: a reserved byte is not zero");
  for (int i = 0; i < 8; i++) {
    Tile& tile = tiles[i];
    tile.row_bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8, tile.rows = from[48 + i];
    check(tile.rows <= 16 && tile.row_bytes <= 64, "LDTILECFG: a tile of more than 16 rows of 64 bytes");
    check((tile.rows == 0) == (tile.row_bytes == 0), "LDTILECFG: rows without bytes, or bytes without rows");
  }
  shaped = true, times_shaped++;
}

Tile& usable(int tile) {
  check(shaped, "a tile is used before LDTILECFG");
  check(tile < 8 && tiles[tile].rows > 0, "a tile without a shape is used");
  return tiles[tile];
}

void multiply(Tile& sum, const Tile& left, const Tile& right) {
  check(&sum != &left && &sum != &right && &left != &right, "TDPBF16PS: a register is named twice");
  check(sum.row_bytes % 4 == 0 && left.row_bytes % 4 == 0, "TDPBF16PS: rows of broken pairs");
  check(sum.rows == left.rows && sum.row_bytes == right.row_bytes && left.row_bytes / 4 == right.rows,
        "TDPBF16PS: shapes do not fit");
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int m = 0; m < sum.rows; m++) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < right.rows; k++) {
      int pair;
      memcpy(&pair, left.data[m] + 4 * k, 4);
      const __m512i x = _mm512_set1_epi32(pair), w = _mm512_load_si512(right.data[k]);
      even = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(w, 16), even);
      odd = _mm512_fmadd_ps((__m512)(x & high), (__m512)(w & high), odd);
    }
    const __m512 total = _mm512_load_ps(sum.data[m]) + (even + odd);
    memset(sum.data[m], 0, 64);
    memcpy(sum.data[m], &total, sum.row_bytes);
  }
}

struct Memory {
  uint8_t* address;
  int64_t stride;  // the index register, scaled
  int length;      // bytes of the operand behind the opcode
};

Memory memory(const uint8_t* modrm, int64_t index_bit, int64_t base_bit, const greg_t* registers) {
  static const int kNumber[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  const int mode = *modrm >> 6, rm = *modrm & 7;
  Memory m{nullptr, 0, 1};
  int64_t base = rm | base_bit << 3, at = 0;
  bool has_base = !(mode == 0 && rm == 5);
  if (rm == 4) {
    const uint8_t sib = modrm[m.length++];
    const int64_t index = (sib >> 3 & 7) | index_bit << 3;
    if (index != 4) m.stride = registers[kNumber[index]] << (sib >> 6);
    base = (sib & 7) | base_bit << 3, has_base = !(mode == 0 && (sib & 7) == 5);
  }
  if (has_base) at = registers[kNumber[base]];
  if (mode == 1) at += static_cast<int8_t>(modrm[m.length++]);
  if (mode == 2 || !has_base) {
    int32_t far;
    memcpy(&far, modrm + m.length, 4);
    m.length += 4, at += far;
    if (rm == 5 && mode == 0) at += reinterpret_cast<int64_t>(modrm + m.length);  // relative to the next instruction
  }
  m.address = reinterpret_cast<uint8_t*>(at);
  return m;
}

// Carries out the instruction at `code` and returns its length, 0 where it is none of AMX.
int execute(const uint8_t* code, const greg_t* registers) {
  enum { kNone, k66, kF3, kF2 };  // the prefix in VEX
  const bool vex = code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x84) == 0;
  if (!vex) return 0;
  const int opcode = code[3], prefix = code[2] & 3, third = ~code[2] >> 3 & 15, reg = code[4] >> 3 & 7,
            rm = code[4] & 7;
  const bool in_registers = code[4] >> 6 == 3;
  auto operand = [&] { return memory(code + 4, ~code[1] >> 6 & 1, ~code[1] >> 5 & 1, registers); };
  if (opcode == 0x49 && prefix == kNone && code[4] == 0xc0) return release(), 5;
  if (opcode == 0x49 && prefix == kNone && !in_registers && reg == 0) {
    Memory m = operand();
    load_shapes(m.address + m.stride);
    return 4 + m.length;
  }
  if (opcode == 0x49 && prefix == kF2 && in_registers && rm == 0)
    return memset(usable(reg).data, 0, sizeof tiles[reg].data), 5;
  if (opcode == 0x4b && (prefix == kF2 || prefix == kF3) && (code[4] & 0xc7) == 0x04 + (code[4] & 0xc0) &&
      !in_registers) {
    Memory m = operand();
    Tile& tile = usable(reg);
    if (prefix == kF2) memset(tile.data, 0, sizeof tile.data);
    for (int row = 0; row < tile.rows; row++, m.address += m.stride)
      prefix == kF2 ? memcpy(tile.data[row], m.address, tile.row_bytes)
                    : memcpy(m.address, tile.data[row], tile.row_bytes);
    return 4 + m.length;
  }
  if (opcode == 0x5c && prefix == kF3 && in_registers) return multiply(usable(reg), usable(rm), usable(third)), 5;
  return 0;
}

void refused(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  // To nearest, denormals are zero, flush to zero, nothing raised, whatever the thread has set; returning restores
  // that.
  _mm_setcsr(0x1f80 | 0x8000 | 0x0040);
  const uint8_t* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  int length = execute(code, registers);
  if (length == 0) signal(SIGILL, SIG_DFL);  // refused again when it is tried again
  for (; length > 0; length = execute(code, registers)) code += length;
  registers[REG_RIP] = reinterpret_cast<greg_t>(code);
}

[[gnu::constructor]] void install() {
  struct sigaction action = {};
  action.sa_sigaction = refused, action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace

// What isa.cpp asks the processor and the kernel for.
extern "C" bool trtllm_pt_may_use_tiles() { return true; }

// Of the calling thread, for the tests.
extern "C" int amx_emulator_configured() { return times_shaped; }
extern "C" int amx_emulator_in_use() { return shaped; }
