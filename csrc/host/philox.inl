// Philox4x32-10 for kPhiloxIds counters at once. Included once per ISA, which defines U (UL 64-bit lanes) and its operations.

// words[i * kPhiloxIds + k] = word i (0 .. 2) of the draw of ids[k]; each lane computes draw() of choices.h.
void philox(const uint64_t* ids, uint32_t epoch, uint32_t stream, uint64_t seed, uint64_t* words) {
  for (int first = 0; first < kPhiloxIds; first += UL) {
    const U id = load_u(ids + first), low = set1_u(0xffffffffu);
    U c0 = and_u(id, low), c1 = high_u(id), c2 = set1_u(epoch), c3 = set1_u(stream);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const U p0 = mul32(c0, set1_u(kPhiloxM0)), p1 = mul32(c2, set1_u(kPhiloxM1));
      c0 = xor_u(xor_u(high_u(p1), c1), set1_u(k0));
      c1 = and_u(p1, low);
      c2 = xor_u(xor_u(high_u(p0), c3), set1_u(k1));
      c3 = and_u(p0, low);
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    store_u(words + first, c0);
    store_u(words + kPhiloxIds + first, c1);
    store_u(words + 2 * kPhiloxIds + first, c2);
  }
}
