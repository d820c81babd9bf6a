// Runs kernels on the CPU: fibers, barriers, warp exchanges, and the table of kernels by name.

#include "shim.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
// Saves what a called function must keep, changes stacks, and goes on where the other fiber stood.
extern "C" void shim_switch(void** save, void* load);
asm(R"(
    .text
    .globl shim_switch
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch, .-shim_switch
)");
#else
#include <ucontext.h>
#endif

namespace shim {
thread_local Thread* current = nullptr;

namespace {
enum class Wait { None, Block, Warp, Done };
constexpr size_t STACK_BYTES = 128 << 10;

struct Fiber {
    Thread thread;
    Wait wait = Wait::None;
    const char* what = "";
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    unsigned char* stack = nullptr;
};

struct Block {
    std::vector<Fiber> fibers;
    // [warp][turn][lane][EXCHANGE_WORDS]: two turns, so that a lane may lay down while another still reads.
    std::vector<uint64_t> exchange;
    std::vector<unsigned char> turns;
    std::vector<unsigned char> dynamic_room;
    size_t running = 0;
    Launcher launcher = nullptr;
    void** arguments = nullptr;
    const char* name = "";
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
    ~Block() {
        for (Fiber& fiber : fibers)
            if (fiber.stack) munmap(fiber.stack, STACK_BYTES);
    }
};
thread_local Block* block = nullptr;

[[noreturn]] void die(const std::string& reason) {
    fprintf(stderr, "shim: kernel %s, block (%u, %u, %u): %s\n", block->name, current->block.x, current->block.y,
            current->block.z, reason.c_str());
    abort();
}

void to_scheduler() {
    Fiber& own = block->fibers[block->running];
#if defined(__x86_64__)
    shim_switch(&own.stack_pointer, block->scheduler);
#else
    swapcontext(&own.context, &block->scheduler);
#endif
}

void fiber_main() {
    block->launcher(block->arguments);
    block->fibers[block->running].wait = Wait::Done;
    to_scheduler();
    abort();
}

void prepare(Fiber& fiber) {
    if (!fiber.stack) {
        void* room = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) die("no memory for a fiber's stack");
        fiber.stack = static_cast<unsigned char*>(room);
    }
    fiber.wait = Wait::None;
#if defined(__x86_64__)
    // The return address stands at a multiple of 16, as behind a call.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES - 32);
    *top = reinterpret_cast<void*>(&fiber_main);
    fiber.stack_pointer = top - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

void resume(size_t index) {
    block->running = index;
    Fiber& fiber = block->fibers[index];
    current = &fiber.thread;
#if defined(__x86_64__)
    shim_switch(&block->scheduler, fiber.stack_pointer);
#else
    swapcontext(&block->scheduler, &fiber.context);
#endif
}

// Lets a warp go on if all its lanes that still run stand at the same operation.
bool release_warp(size_t warp, size_t threads) {
    const char* what = nullptr;
    size_t first = warp * 32, end = first + 32 < threads ? first + 32 : threads;
    for (size_t i = first; i < end; i++) {
        Fiber& fiber = block->fibers[i];
        if (fiber.wait == Wait::Done) continue;
        if (fiber.wait != Wait::Warp) return false;
        if (what && strcmp(what, fiber.what) != 0) die(std::string("lanes of a warp are at ") + what + " and " + fiber.what);
        what = fiber.what;
    }
    if (!what) return false;
    for (size_t i = first; i < end; i++)
        if (block->fibers[i].wait == Wait::Warp) block->fibers[i].wait = Wait::None;
    return true;
}

bool release_block(size_t threads) {
    bool any = false;
    for (size_t i = 0; i < threads; i++) {
        Wait wait = block->fibers[i].wait;
        if (wait != Wait::Done && wait != Wait::Block) return false;
        any = any || wait == Wait::Block;
    }
    if (any)
        for (size_t i = 0; i < threads; i++)
            if (block->fibers[i].wait == Wait::Block) block->fibers[i].wait = Wait::None;
    return any;
}

void run_block(size_t threads, size_t number) {
    if (block->fibers.size() < threads) block->fibers.resize(threads);
    size_t warps = (threads + 31) / 32;
    block->exchange.resize(warps * 2 * 32 * EXCHANGE_WORDS);
    block->turns.assign(threads, 0);
    if (!block->dynamic_room.empty()) memset(block->dynamic_room.data(), 0xff, block->dynamic_room.size());
    for (size_t i = 0; i < threads; i++) prepare(block->fibers[i]);
    for (size_t pass = number, live = threads; live > 0; pass++) {
        bool moved = false;
        for (size_t i = 0; i < threads; i++) {
            size_t index = pass % 2 == 0 ? i : threads - 1 - i;
            if (block->fibers[index].wait != Wait::None) continue;
            moved = true;
            resume(index);
            if (block->fibers[index].wait == Wait::Done) live--;
        }
        for (size_t warp = 0; warp < warps; warp++) moved = release_warp(warp, threads) || moved;
        moved = release_block(threads) || moved;
        if (live > 0 && !moved) die("threads wait for others that have ended or wait for something else");
    }
}

std::map<std::string, Launcher>& table() {
    static std::map<std::string, Launcher> kernels;
    return kernels;
}
}  // namespace

Registration::Registration(const char* name, Launcher launcher) {
    if (!table().emplace(name, launcher).second) {
        fprintf(stderr, "shim: there are two kernels %s\n", name);
        abort();
    }
}

void block_barrier() {
    block->fibers[block->running].wait = Wait::Block;
    to_scheduler();
}

const uint64_t* warp_exchange(const char* what, const uint64_t* words, int count) {
    size_t own = block->running;
    Fiber& fiber = block->fibers[own];
    unsigned turn = block->turns[own]++ % 2;
    uint64_t* room = block->exchange.data() + (own / 32 * 2 + turn) * 32 * EXCHANGE_WORDS;
    for (int i = 0; i < count; i++) room[own % 32 * EXCHANGE_WORDS + i] = words[i];
    fiber.wait = Wait::Warp;
    fiber.what = what;
    to_scheduler();
    return room;
}

uint16_t f16_of(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (rest >= 0x47800000) return uint16_t(sign | 0x7c00);
    if (rest < 0x38800000) {
        // Subnormal: the float addition rounds at the right bit.
        float small = __uint_as_float(rest) + 0.5f;
        return uint16_t(sign | (__float_as_uint(small) - 0x3f000000));
    }
    rest += 0xc8000fff + (rest >> 13 & 1);
    return uint16_t(sign | rest >> 13);
}

float float_of_f16(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        float small = float(mantissa) * 0x1p-24f;
        return sign ? -small : small;
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

float float_of_fp8(uint8_t bits) {
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (exponent == 15 && mantissa == 7) return NAN;
    float x = exponent == 0 ? float(mantissa) * 0x1p-9f : ldexpf(1.0f + float(mantissa) / 8.0f, exponent - 7);
    return bits & 0x80 ? -x : x;
}

uint8_t fp8_of(float x) {
    if (x != x) return 0x7f;
    uint8_t sign = std::signbit(x) ? 0x80 : 0;
    float size = fabsf(x);
    if (size >= 448.0f) return sign | 0x7e;
    // Steps of 2^-9 below 2^-6, else of an eighth of the power of two below; ties to even by nearbyintf.
    int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
    int steps = int(nearbyintf(ldexpf(size, 3 - exponent)));
    if (steps == 16) { exponent++; steps = 8; }
    uint8_t code = steps < 8 ? uint8_t(steps) : uint8_t((exponent + 7) << 3 | (steps - 8));
    return sign | (code > 0x7e ? 0x7e : code);
}
}  // namespace shim

// 0: done. 1: there is no such kernel. `arguments` are as for cuLaunchKernel.
extern "C" int shim_launch(const char* name, const unsigned* grid, const unsigned* block_dim, size_t shared_bytes,
                           void** arguments) {
    using namespace shim;
    auto found = table().find(name);
    if (found == table().end()) return 1;
    size_t blocks = size_t(grid[0]) * grid[1] * grid[2], threads = size_t(block_dim[0]) * block_dim[1] * block_dim[2];
    std::atomic<size_t> next(0);
    auto work = [&] {
        static thread_local Block own;
        own.launcher = found->second;
        own.arguments = arguments;
        own.name = found->first.c_str();
        own.dynamic_room.resize(shared_bytes);
        block = &own;
        for (size_t number; (number = next.fetch_add(1)) < blocks;) {
            if (own.fibers.size() < threads) own.fibers.resize(threads);
            for (size_t i = 0; i < threads; i++) {
                Thread& thread = own.fibers[i].thread;
                thread.grid_dim = {grid[0], grid[1], grid[2]};
                thread.block_dim = {block_dim[0], block_dim[1], block_dim[2]};
                thread.block = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                                unsigned(number / grid[0] / grid[1])};
                thread.thread = {unsigned(i % block_dim[0]), unsigned(i / block_dim[0] % block_dim[1]),
                                 unsigned(i / block_dim[0] / block_dim[1])};
                thread.number = unsigned(i);
                thread.dynamic_room = own.dynamic_room.data();
            }
            current = &own.fibers[0].thread;
            run_block(threads, number);
        }
    };
    if (blocks < 8) {
        work();
        return 0;
    }
    std::thread other(work);
    work();
    other.join();
    return 0;
}

// Whether there is such a kernel.
extern "C" int shim_has(const char* name) { return shim::table().count(name) ? 1 : 0; }
