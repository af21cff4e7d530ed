// shake_shake and sgd_ema. Included once per ISA; needs V, VL, load, store, add, mul, fma.

template <class E>
inline void shake_typed(const void* x1, const void* x2, const void* residual, void* y, int64_t n, float a) {
  typedef typename E::T T;
  const T *p = static_cast<const T*>(x1), *q = static_cast<const T*>(x2), *r = static_cast<const T*>(residual);
  T* out = static_cast<T*>(y);
  const V va = set1(a), vb = set1(1 - a);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    const V sum = fma(load(E(), p + i), va, load(E(), r + i));
    store(E(), out + i, fma(load(E(), q + i), vb, sum));
  }
  for (; i < n; ++i) out[i] = E::put(E::get(r[i]) + a * E::get(p[i]) + (1 - a) * E::get(q[i]));
}

void shake(const void* x1, const void* x2, const void* residual, void* y, int64_t n, float a, int32_t dtype) {
  if (dtype == kF32) {
    shake_typed<F32>(x1, x2, residual, y, n, a);
  } else if (dtype == kBF16) {
    shake_typed<BF16>(x1, x2, residual, y, n, a);
  } else {
    shake_typed<F16>(x1, x2, residual, y, n, a);
  }
}

template <class E>
inline void shake_backward_typed(const void* grad, void* d1, void* d2, int64_t n, float b) {
  typedef typename E::T T;
  const T* g = static_cast<const T*>(grad);
  T *p = static_cast<T*>(d1), *q = static_cast<T*>(d2);
  const V vb = set1(b), vc = set1(1 - b);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    const V v = load(E(), g + i);
    store(E(), p + i, mul(v, vb));
    store(E(), q + i, mul(v, vc));
  }
  for (; i < n; ++i) {
    p[i] = E::put(b * E::get(g[i]));
    q[i] = E::put((1 - b) * E::get(g[i]));
  }
}

void shake_backward(const void* grad, void* d1, void* d2, int64_t n, float b, int32_t dtype) {
  if (dtype == kF32) {
    shake_backward_typed<F32>(grad, d1, d2, n, b);
  } else if (dtype == kBF16) {
    shake_backward_typed<BF16>(grad, d1, d2, n, b);
  } else {
    shake_backward_typed<F16>(grad, d1, d2, n, b);
  }
}

struct BnPointers {
  const void *x1, *x2, *residual;
  void* y;
};

// A run of `n` elements that starts at element `at`; weight(c) for c = 0 .. n - 1, or one weight where n is a plane.
template <class E, bool kPlane>
inline void shake_bn_run(const BnPointers& io, int64_t at, int64_t n, const float* w1, const float* w2, const float* w0) {
  typedef typename E::T T;
  const T *p = static_cast<const T*>(io.x1) + at, *q = static_cast<const T*>(io.x2) + at;
  const T* r = static_cast<const T*>(io.residual) + at;
  T* out = static_cast<T*>(io.y) + at;
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    const V s1 = kPlane ? set1(*w1) : load(F32(), w1 + i), s2 = kPlane ? set1(*w2) : load(F32(), w2 + i);
    const V s0 = kPlane ? set1(*w0) : load(F32(), w0 + i);
    const V sum = fma(load(E(), p + i), s1, add(load(E(), r + i), s0));
    store(E(), out + i, fma(load(E(), q + i), s2, sum));
  }
  for (; i < n; ++i) {
    const int64_t c = kPlane ? 0 : i;
    out[i] = E::put(E::get(r[i]) + w0[c] + w1[c] * E::get(p[i]) + w2[c] * E::get(q[i]));
  }
}

template <class E>
inline void shake_bn_typed(const BnPointers& io, int64_t n, int32_t channels, const float* w1, const float* w2, const float* w0) {
  if (channels == 1) return shake_bn_run<E, true>(io, 0, n, w1, w2, w0);
  for (int64_t at = 0; at < n; at += channels) shake_bn_run<E, false>(io, at, channels, w1, w2, w0);
}

void shake_bn(const void* x1, const void* x2, const void* residual, void* y, int64_t n, int32_t channels, const float* w1,
              const float* w2, const float* w0, int32_t dtype) {
  const BnPointers io{x1, x2, residual, y};
  if (dtype == kF32) {
    shake_bn_typed<F32>(io, n, channels, w1, w2, w0);
  } else if (dtype == kBF16) {
    shake_bn_typed<BF16>(io, n, channels, w1, w2, w0);
  } else {
    shake_bn_typed<F16>(io, n, channels, w1, w2, w0);
  }
}

inline float total(V v) {
  float lane[VL], sum = 0;
  store(F32(), lane, v);
  for (int i = 0; i < VL; ++i) sum += lane[i];
  return sum;
}

struct BnGradients {
  const void *grad, *x1, *x2;
  void *d1, *d2;
};

// One channel's plane: the sums stay in registers.
template <class E>
inline void bn_backward_plane(const BnGradients& io, int64_t n, float w1, float w2, float* sums) {
  typedef typename E::T T;
  const T *g = static_cast<const T*>(io.grad), *p = static_cast<const T*>(io.x1), *q = static_cast<const T*>(io.x2);
  T *d1 = static_cast<T*>(io.d1), *d2 = static_cast<T*>(io.d2);
  V s0 = zero(), s1 = zero(), s2 = zero();
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    const V v = load(E(), g + i);
    s0 = add(s0, v);
    s1 = fma(v, load(E(), p + i), s1);
    s2 = fma(v, load(E(), q + i), s2);
    store(E(), d1 + i, mul(v, set1(w1)));
    store(E(), d2 + i, mul(v, set1(w2)));
  }
  sums[0] += total(s0);
  sums[1] += total(s1);
  sums[2] += total(s2);
  for (; i < n; ++i) {
    const float v = E::get(g[i]);
    sums[0] += v;
    sums[1] += v * E::get(p[i]);
    sums[2] += v * E::get(q[i]);
    d1[i] = E::put(v * w1);
    d2[i] = E::put(v * w2);
  }
}

// One pixel of all channels: the sums live in memory (L1).
template <class E>
inline void bn_backward_pixel(const BnGradients& io, int64_t at, int channels, const float* w1, const float* w2, float* sums) {
  typedef typename E::T T;
  const T *g = static_cast<const T*>(io.grad) + at, *p = static_cast<const T*>(io.x1) + at;
  const T* q = static_cast<const T*>(io.x2) + at;
  T *d1 = static_cast<T*>(io.d1) + at, *d2 = static_cast<T*>(io.d2) + at;
  float *s0 = sums, *s1 = sums + channels, *s2 = sums + 2 * channels;
  int c = 0;
  for (; c + VL <= channels; c += VL) {
    const V v = load(E(), g + c);
    store(F32(), s0 + c, add(load(F32(), s0 + c), v));
    store(F32(), s1 + c, fma(v, load(E(), p + c), load(F32(), s1 + c)));
    store(F32(), s2 + c, fma(v, load(E(), q + c), load(F32(), s2 + c)));
    store(E(), d1 + c, mul(v, load(F32(), w1 + c)));
    store(E(), d2 + c, mul(v, load(F32(), w2 + c)));
  }
  for (; c < channels; ++c) {
    const float v = E::get(g[c]);
    s0[c] += v;
    s1[c] += v * E::get(p[c]);
    s2[c] += v * E::get(q[c]);
    d1[c] = E::put(v * w1[c]);
    d2[c] = E::put(v * w2[c]);
  }
}

template <class E>
inline void bn_backward_typed(const BnGradients& io, int64_t n, int channels, const float* w1, const float* w2, float* sums) {
  if (channels == 1) return bn_backward_plane<E>(io, n, *w1, *w2, sums);
  for (int64_t at = 0; at < n; at += channels) bn_backward_pixel<E>(io, at, channels, w1, w2, sums);
}

void shake_bn_backward(const void* grad, const void* x1, const void* x2, void* d1, void* d2, int64_t n, int32_t channels,
                       const float* w1, const float* w2, float* sums, int32_t dtype) {
  const BnGradients io{grad, x1, x2, d1, d2};
  if (dtype == kF32) {
    bn_backward_typed<F32>(io, n, channels, w1, w2, sums);
  } else if (dtype == kBF16) {
    bn_backward_typed<BF16>(io, n, channels, w1, w2, sums);
  } else {
    bn_backward_typed<F16>(io, n, channels, w1, w2, sums);
  }
}

// m and e may be null. The multiplications and additions come in torch.optim.SGD's order.
void sgd_ema(float* p, const float* g, float* m, float* e, int64_t n, const SgdParams& o) {
  const V lr = set1(-o.lr), scale = set1(o.grad_scale), mu = set1(o.momentum), wd = set1(o.weight_decay);
  const V weight = set1(o.ema_weight);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    V w = load(F32(), p + i);
    const V grad = fma(w, wd, mul(load(F32(), g + i), scale));
    V step = grad;
    if (m) {
      const V velocity = fma(load(F32(), m + i), mu, grad);
      store(F32(), m + i, velocity);
      step = o.nesterov ? fma(velocity, mu, grad) : velocity;
    }
    w = fma(step, lr, w);
    store(F32(), p + i, w);
    if (e) {
      const V average = load(F32(), e + i);
      store(F32(), e + i, fma(sub(w, average), weight, average));
    }
  }
  for (; i < n; ++i) {
    const float grad = p[i] * o.weight_decay + g[i] * o.grad_scale;
    float step = grad;
    if (m) {
      m[i] = m[i] * o.momentum + grad;
      step = o.nesterov ? grad + m[i] * o.momentum : m[i];
    }
    p[i] -= step * o.lr;
    if (e) e[i] += (p[i] - e[i]) * o.ema_weight;
  }
}
