// Loads and stores with cache hints, and atomic operations on integers.
#pragma once

#define STANDIN_LOAD(name) \
  template <class T>       \
  T name(const T* from) {  \
    return *from;          \
  }
#define STANDIN_STORE(name)   \
  template <class T>          \
  void name(T* to, T value) { \
    *to = value;              \
  }
STANDIN_LOAD(__ldg)
STANDIN_LOAD(__ldca)
STANDIN_LOAD(__ldcg)
STANDIN_LOAD(__ldcs)
STANDIN_LOAD(__ldcv)
STANDIN_LOAD(__ldlu)
STANDIN_STORE(__stcg)
STANDIN_STORE(__stcs)
STANDIN_STORE(__stwb)
STANDIN_STORE(__stwt)
#undef STANDIN_LOAD
#undef STANDIN_STORE

// Threads of a launch run one at a time, so reading and writing is enough. There are none for float: the order of
// their sums would differ from run to run, and a kernel that uses them does not compile here.
#define STANDIN_ATOMIC(name, type, result) \
  inline type name(type* at, type value) { \
    const type old = *at;                  \
    *at = result;                          \
    return old;                            \
  }
#define STANDIN_ATOMICS(type)                                  \
  STANDIN_ATOMIC(atomicExch, type, value)                      \
  STANDIN_ATOMIC(atomicMin, type, value < old ? value : old)   \
  STANDIN_ATOMIC(atomicMax, type, value > old ? value : old)   \
  STANDIN_ATOMIC(atomicAnd, type, old& value)                  \
  STANDIN_ATOMIC(atomicOr, type, old | value)                  \
  STANDIN_ATOMIC(atomicXor, type, old ^ value)                 \
  inline type atomicCAS(type* at, type expected, type value) { \
    const type old = *at;                                      \
    if (old == expected) *at = value;                          \
    return old;                                                \
  }
STANDIN_ATOMICS(int)
STANDIN_ATOMICS(unsigned)
STANDIN_ATOMICS(unsigned long long)
STANDIN_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
STANDIN_ATOMIC(atomicAdd, unsigned, old + value)
STANDIN_ATOMIC(atomicAdd, unsigned long long, old + value)
STANDIN_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
STANDIN_ATOMIC(atomicSub, unsigned, old - value)
STANDIN_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
STANDIN_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef STANDIN_ATOMICS
#undef STANDIN_ATOMIC
