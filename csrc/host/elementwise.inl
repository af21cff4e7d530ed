// The inner loops of shake_shake and sgd_ema. Included once per ISA, which defines V (VL floats), load, store, mul, fma, ...

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

// p, g, m, e: n weights, gradients, momenta and averages; m and e may be null. Operations are in torch.optim.SGD's order.
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
