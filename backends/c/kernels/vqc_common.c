/* Error texts, the weights file's check, and the parallel loop. */
#include "vqc_common.h"

#include <string.h>

const char *vqc_strerror(int code) {
    switch (code) {
    case VQC_OK: return "no error";
    case VQC_E_NULL: return "a pointer is NULL";
    case VQC_E_ALIGN: return "arena, state or weights are not aligned to 64 bytes, or a tensor not to its element size";
    case VQC_E_ARENA: return "the arena is too small";
    case VQC_E_WEIGHTS_SIZE: return "the weights have the wrong size: truncated, or of another program";
    case VQC_E_WEIGHTS_MAGIC: return "this is not a weights file";
    case VQC_E_WEIGHTS_ABI: return "the weights file has another version than the program";
    case VQC_E_WEIGHTS_OTHER: return "the weights belong to another program";
    case VQC_E_WEIGHTS_DAMAGED: return "the weights are damaged: their hash is not the stated one";
    case VQC_E_ENDIAN: return "the weights are little-endian and this machine is not";
    case VQC_E_MODEL: return "the model was not initialised by this program";
    case VQC_E_STATE: return "the state was not reset by this program";
    case VQC_E_CPU: return "this CPU lacks instructions that the program was compiled for";
    default: return "unknown error";
    }
}

static uint32_t rotr(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

/* FIPS 180-4, section 6.2.2: one block of 64 bytes. */
static void sha256_block(uint32_t h[8], const unsigned char *p) {
    static const uint32_t k[64] = {
        0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
        0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
        0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
        0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
        0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
        0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
        0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
        0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
        uint32_t b = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t big1 = rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25);
        uint32_t t1 = s[7] + big1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        uint32_t big0 = rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22);
        uint32_t t2 = big0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int j = 7; j > 0; j--) s[j] = s[j - 1];
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
}

void vqc_sha256(const unsigned char *data, size_t size, unsigned char digest[32]) {
    uint32_t h[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    unsigned char tail[128] = {0};
    size_t whole = size / 64, rest = size % 64, blocks = rest < 56 ? 1 : 2;
    for (size_t i = 0; i < whole; i++) sha256_block(h, data + 64 * i);
    if (rest) memcpy(tail, data + 64 * whole, rest);
    tail[rest] = 0x80;
    uint64_t bits = (uint64_t)size * 8;
    for (int i = 0; i < 8; i++) tail[64 * blocks - 1 - (size_t)i] = (unsigned char)(bits >> (8 * i));
    for (size_t i = 0; i < blocks; i++) sha256_block(h, tail + 64 * i);
    for (int i = 0; i < 32; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

int vqc_check_weights(const void *file, size_t given, size_t expected, const unsigned char hash[32]) {
    const unsigned char *p = (const unsigned char *)file;
    const uint32_t one = 1;
    uint32_t abi;
    uint64_t payload;
    unsigned char digest[32];
    if (file == NULL) return VQC_E_NULL;
    if (*(const unsigned char *)&one != 1) return VQC_E_ENDIAN;
    if ((uintptr_t)file % VQC_ALIGN != 0) return VQC_E_ALIGN;
    if (given < 64) return VQC_E_WEIGHTS_SIZE;
    if (memcmp(p, "VQCWGHT\n", 8) != 0) return VQC_E_WEIGHTS_MAGIC;
    memcpy(&abi, p + 8, sizeof abi);
    if (abi != VQC_ABI) return VQC_E_WEIGHTS_ABI;
    if (memcmp(p + 24, hash, 32) != 0) return VQC_E_WEIGHTS_OTHER;
    memcpy(&payload, p + 16, sizeof payload);
    if (given != expected || payload != (uint64_t)(expected - 64)) return VQC_E_WEIGHTS_SIZE;
    vqc_sha256(p + 64, given - 64, digest);
    return memcmp(digest, hash, 32) == 0 ? VQC_OK : VQC_E_WEIGHTS_DAMAGED;
}

void vqc_for(const vqc_model *m, vqc_task task, void *arg, int count) {
    if (m->parallel != NULL && count > 1) {
        m->parallel(m->pool, task, arg, count);
        return;
    }
    for (int i = 0; i < count; i++) task(arg, i, 0);
}
