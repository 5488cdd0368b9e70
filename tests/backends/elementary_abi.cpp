// The functions of floats behind plain C names, each in a loop as in a kernel.
#include <optgen/math.h>

#define OF_ONE(name)                                                                 \
  extern "C" void c_##name(const float* __restrict x, float* __restrict y, int n) { \
    for (int i = 0; i < n; ++i) y[i] = optgen::name(x[i]);                           \
  }

OF_ONE(exp)
OF_ONE(log)
OF_ONE(tanh)
OF_ONE(sigmoid)
OF_ONE(softplus)

extern "C" void c_power(const float* __restrict x, float* __restrict y, int n, float exponent) {
  for (int i = 0; i < n; ++i) y[i] = optgen::power(x[i], exponent);
}
