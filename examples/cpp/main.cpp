// An exported network in C++: raw frames from standard input, denoised ones to standard output.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "denoise.h"

namespace {

constexpr std::size_t kPixels = 64 * 96;

// Memory at a multiple of VQC_ALIGN, which the network asks for.
class Block {
public:
    explicit Block(std::size_t size) : size_(size), memory_(new unsigned char[size + VQC_ALIGN]) {
        void *at = memory_.get();
        std::size_t space = size + VQC_ALIGN;
        start_ = std::align(VQC_ALIGN, size, at, space);
    }
    void *get() const { return start_; }
    std::size_t size() const { return size_; }

private:
    std::size_t size_;
    std::unique_ptr<unsigned char[]> memory_;
    void *start_ = nullptr;
};

Block read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file || bytes.empty()) throw std::runtime_error("cannot read " + path);
    Block block(bytes.size());
    std::copy(bytes.begin(), bytes.end(), static_cast<char *>(block.get()));
    return block;
}

void check(int error) {
    if (error != VQC_OK) throw std::runtime_error(denoise_strerror(error));
}

// One running video. Several share the weights; each has its own scratch and state.
class Denoiser {
public:
    explicit Denoiser(const Block &weights) : arena_(denoise_arena_size()), state_(denoise_state_size()) {
        check(denoise_init(&model_, weights.get(), weights.size(), arena_.get(), arena_.size()));
        reset();
    }
    void reset() { check(denoise_reset(&model_, state_.get())); }
    void operator()(const float *frame, float *result) {
        const std::array<const void *, 1> inputs{frame};
        const std::array<void *, 1> outputs{result};
        check(denoise_run(&model_, state_.get(), inputs.data(), outputs.data()));
    }

private:
    denoise_model model_{};
    Block arena_, state_;
};

} // namespace

int main(int argc, char **argv) try {
    const Block weights = read(std::string(argc > 1 ? argv[1] : ".") + "/denoise.weights.bin");
    Denoiser denoise(weights);
    std::vector<unsigned char> bytes(3 * kPixels);
    Block frame(3 * kPixels * sizeof(float)), result(3 * kPixels * sizeof(float));
    auto *in = static_cast<float *>(frame.get()), *out = static_cast<float *>(result.get());
    while (std::fread(bytes.data(), 3, kPixels, stdin) == kPixels) {
        for (std::size_t c = 0; c < 3; c++)
            for (std::size_t i = 0; i < kPixels; i++) in[c * kPixels + i] = static_cast<float>(bytes[3 * i + c]) / 255.0f;
        denoise(in, out);
        for (std::size_t c = 0; c < 3; c++)
            for (std::size_t i = 0; i < kPixels; i++)
                bytes[3 * i + c] = static_cast<unsigned char>(out[c * kPixels + i] * 255.0f + 0.5f);
        if (std::fwrite(bytes.data(), 3, kPixels, stdout) != kPixels) throw std::runtime_error("cannot write");
    }
    return EXIT_SUCCESS;
} catch (const std::exception &error) {
    std::fprintf(stderr, "denoise_app: %s\n", error.what());
    return EXIT_FAILURE;
}
