// Layers that are many passes over memory in PyTorch on a CPU, as one pass each. Called from __init__.py.
//
// Arrays are contiguous. T is float or bf16; all arithmetic is float32, and gradients of parameters are summed in
// float32, each thread's rows apart. Rows are worked on in blocks that stay in the cache, one stage after the other, so
// that short rows do not wait for their own sums.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

struct bf16 { uint16_t bits; };

INLINE float load(float x) { return x; }
INLINE float load(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE void store(float &to, float x) { to = x; }
INLINE void store(bf16 &to, float x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// exp(x) = 2^n·exp(f) with |f| <= ln(2)/2; ln(2) in two parts, exp(f) by its series, to float32's last digit
INLINE float exp_(float x) {
    float t = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = rintf(t * 1.44269504f);
    float f = (t - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return e * power;
}

INLINE float sigmoid(float x) { return 1 / (1 + exp_(-x)); }

INLINE float tanh_(float x) { return 2 * sigmoid(2 * x) - 1; }

const long BLOCK = 2048;  // numbers in a block of rows

// Rows x (m, c) → x minus its mean, and 1 / its standard deviation.
template <typename T>
INLINE void center(const T *x, float *centered, float *scale, long m, long c, float eps) {
    for (long i = 0; i < m; i++) {
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < c; j++) {
            float v = load(x[i * c + j]);
            centered[i * c + j] = v;
            sum += v;
        }
        scale[i] = sum / c;
    }
    for (long i = 0; i < m; i++) {
        float mean = scale[i], sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < c; j++) {
            float v = centered[i * c + j] - mean;
            centered[i * c + j] = v;
            sum += v * v;
        }
        scale[i] = sum;
    }
    for (long i = 0; i < m; i++) scale[i] = 1 / sqrtf(scale[i] / c + eps);
}

// The gradient that reaches LayerNorm's input: rows of normalized values and of gradients after the weight (m, c), the
// means over each row of these gradients and of their products with the normalized values, and the scale.
template <typename T>
INLINE void center_backward(const float *normed, const float *grad, const float *mean, const float *along,
                            const float *scale, T *out, long m, long c) {
    for (long i = 0; i < m; i++) {
        float a = mean[i], b = along[i], s = scale[i];
        #pragma omp simd
        for (long j = 0; j < c; j++) store(out[i * c + j], s * (grad[i * c + j] - a - normed[i * c + j] * b));
    }
}

// COLUMNS: c where it is known to the compiler, which short rows gain from, or 0.
template <typename T, long COLUMNS>
void norm_silu(const T *x, const float *weight, const float *bias, T *y, long n, long columns, float eps, long threads) {
    const long c = COLUMNS ? COLUMNS : columns, rows = c < BLOCK ? BLOCK / c : 1;
    #pragma omp parallel num_threads(threads)
    {
        float h[rows * c], scale[rows];
        #pragma omp for schedule(static)
        for (long k = 0; k < n; k += rows) {
            long m = n - k < rows ? n - k : rows;
            T *out = y + k * c;
            center(x + k * c, h, scale, m, c, eps);
            for (long i = 0; i < m; i++) {
                float s = scale[i];
                #pragma omp simd
                for (long j = 0; j < c; j++) {
                    float z = h[i * c + j] * s * weight[j] + bias[j];
                    store(out[i * c + j], z * sigmoid(z));
                }
            }
        }
    }
}

template <typename T, long COLUMNS>
void norm_silu_backward(const T *x, const T *grad, const float *weight, const float *bias, T *dx, float *dparameters,
                        long n, long columns, float eps, long threads) {
    const long c = COLUMNS ? COLUMNS : columns, rows = c < BLOCK ? BLOCK / c : 1;
    #pragma omp parallel num_threads(threads)
    {
        float h[rows * c], u[rows * c], scale[rows], mean[rows], along[rows], dweight[c], dbias[c];
        for (long j = 0; j < c; j++) dweight[j] = dbias[j] = 0;
        #pragma omp for schedule(static)
        for (long k = 0; k < n; k += rows) {
            long m = n - k < rows ? n - k : rows;
            const T *g = grad + k * c;
            center(x + k * c, h, scale, m, c, eps);
            for (long i = 0; i < m; i++) {
                float s = scale[i], a = 0, b = 0;
                #pragma omp simd reduction(+ : a, b)
                for (long j = 0; j < c; j++) {
                    float normed = h[i * c + j] * s, z = normed * weight[j] + bias[j], p = sigmoid(z);
                    float d = load(g[i * c + j]) * p * (1 + z * (1 - p));
                    dweight[j] += d * normed;
                    dbias[j] += d;
                    d *= weight[j];
                    h[i * c + j] = normed;
                    u[i * c + j] = d;
                    a += d;
                    b += d * normed;
                }
                mean[i] = a / c;
                along[i] = b / c;
            }
            center_backward(h, u, mean, along, scale, dx + k * c, m, c);
        }
        float *out = dparameters + omp_get_thread_num() * 2 * c;
        memcpy(out, dweight, c * 4);
        memcpy(out + c, dbias, c * 4);
    }
}

// parts (n, 3d), deter (n, d) → y (n, d)
template <typename T>
void gru_gates(const T *parts, const float *deter, const float *weight, const float *bias, float *y, long n, long d,
               float eps, long threads) {
    const long c = 3 * d;
    #pragma omp parallel num_threads(threads)
    {
        float h[c], scale;
        #pragma omp for schedule(static)
        for (long i = 0; i < n; i++) {
            center(parts + i * c, h, &scale, 1, c, eps);
            #pragma omp simd
            for (long j = 0; j < d; j++) {
                float reset = sigmoid(h[j] * scale * weight[j] + bias[j]);
                float cand = tanh_(reset * (h[d + j] * scale * weight[d + j] + bias[d + j]));
                float update = sigmoid(h[2 * d + j] * scale * weight[2 * d + j] + bias[2 * d + j] - 1);
                y[i * d + j] = update * cand + (1 - update) * deter[i * d + j];
            }
        }
    }
}

template <typename T>
void gru_gates_backward(const T *parts, const float *deter, const float *grad, const float *weight, const float *bias,
                        T *dparts, float *ddeter, float *dparameters, long n, long d, float eps, long threads) {
    const long c = 3 * d;
    #pragma omp parallel num_threads(threads)
    {
        float h[c], u[c], scale, dweight[c], dbias[c];
        for (long j = 0; j < c; j++) dweight[j] = dbias[j] = 0;
        #pragma omp for schedule(static)
        for (long i = 0; i < n; i++) {
            center(parts + i * c, h, &scale, 1, c, eps);
            #pragma omp simd
            for (long j = 0; j < c; j++) h[j] *= scale;
            #pragma omp simd
            for (long j = 0; j < d; j++) {
                float part = h[d + j] * weight[d + j] + bias[d + j];
                float reset = sigmoid(h[j] * weight[j] + bias[j]);
                float cand = tanh_(reset * part);
                float update = sigmoid(h[2 * d + j] * weight[2 * d + j] + bias[2 * d + j] - 1);
                float g = grad[i * d + j], dcand = g * update * (1 - cand * cand);
                u[j] = dcand * part * reset * (1 - reset);
                u[d + j] = dcand * reset;
                u[2 * d + j] = g * (cand - deter[i * d + j]) * update * (1 - update);
                ddeter[i * d + j] = g * (1 - update);
            }
            float a = 0, b = 0;
            #pragma omp simd reduction(+ : a, b)
            for (long j = 0; j < c; j++) {
                float v = u[j];
                dweight[j] += v * h[j];
                dbias[j] += v;
                v *= weight[j];
                u[j] = v;
                a += v;
                b += v * h[j];
            }
            a /= c;
            b /= c;
            center_backward(h, u, &a, &b, &scale, dparts + i * c, 1, c);
        }
        float *out = dparameters + omp_get_thread_num() * 2 * c;
        memcpy(out, dweight, c * 4);
        memcpy(out + c, dbias, c * 4);
    }
}

// logits (n, k) → y (n, k): softmax over k, with a share of the uniform distribution.
template <long CLASSES>
void mix(const float *logits, float *y, long n, long classes, float share, long threads) {
    const long k = CLASSES ? CLASSES : classes;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) {
        const float *x = logits + i * k;
        float *out = y + i * k, top = x[0], sum = 0;
        #pragma omp simd reduction(max : top)
        for (long j = 0; j < k; j++) top = x[j] > top ? x[j] : top;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < k; j++) {
            float e = exp_(x[j] - top);
            out[j] = e;
            sum += e;
        }
        float scale = (1 - share) / sum;
        #pragma omp simd
        for (long j = 0; j < k; j++) out[j] = out[j] * scale + share / k;
    }
}

template <long CLASSES>
void mix_gradient(const float *y, const float *grad, float *dlogits, long n, long classes, float share, long threads) {
    const long k = CLASSES ? CLASSES : classes;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) {
        const float *p = y + i * k, *g = grad + i * k;
        float *out = dlogits + i * k, along = 0;
        // (1 - share)·softmax is y without its uniform share
        #pragma omp simd reduction(+ : along)
        for (long j = 0; j < k; j++) along += g[j] * (p[j] - share / k);
        along = share < 1 ? along / (1 - share) : 0;
        #pragma omp simd
        for (long j = 0; j < k; j++) out[j] = (p[j] - share / k) * (g[j] - along);
    }
}

// probs (n, k), u (n) uniform numbers → y (n, k): one-hot of the class whose share of (0, 1) holds u.
extern "C" void pick_class(const float *probs, const float *u, float *y, long n, long k, long threads) {
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) {
        float sum = 0;
        long below = 0;
        for (long j = 0; j < k; j++) {
            sum += probs[i * k + j];
            below += sum <= u[i];
        }
        memset(y + i * k, 0, k * 4);
        y[i * k + (below < k ? below : k - 1)] = 1;
    }
}

// What __init__.py sees of the templates: `half` tells bf16 from float.
extern "C" {

void norm_silu_forward(long half, const void *x, const float *weight, const float *bias, void *y, long n, long c,
                       float eps, long threads) {
    #define CALL(T, COLUMNS) norm_silu<T, COLUMNS>((const T *)x, weight, bias, (T *)y, n, c, eps, threads)
    if (c == 8) half ? CALL(bf16, 8) : CALL(float, 8);
    else if (c == 32) half ? CALL(bf16, 32) : CALL(float, 32);
    else if (c == 64) half ? CALL(bf16, 64) : CALL(float, 64);
    else half ? CALL(bf16, 0) : CALL(float, 0);
    #undef CALL
}

void norm_silu_backward(long half, const void *x, const void *grad, const float *weight, const float *bias, void *dx,
                        float *dparameters, long n, long c, float eps, long threads) {
    #define CALL(T, COLUMNS) \
        norm_silu_backward<T, COLUMNS>((const T *)x, (const T *)grad, weight, bias, (T *)dx, dparameters, n, c, eps, threads)
    if (c == 8) half ? CALL(bf16, 8) : CALL(float, 8);
    else if (c == 32) half ? CALL(bf16, 32) : CALL(float, 32);
    else if (c == 64) half ? CALL(bf16, 64) : CALL(float, 64);
    else half ? CALL(bf16, 0) : CALL(float, 0);
    #undef CALL
}

void gru_gates_forward(long half, const void *parts, const float *deter, const float *weight, const float *bias,
                       float *y, long n, long d, float eps, long threads) {
    half ? gru_gates((const bf16 *)parts, deter, weight, bias, y, n, d, eps, threads)
         : gru_gates((const float *)parts, deter, weight, bias, y, n, d, eps, threads);
}

void gru_gates_backward(long half, const void *parts, const float *deter, const float *grad, const float *weight,
                        const float *bias, void *dparts, float *ddeter, float *dparameters, long n, long d, float eps,
                        long threads) {
    #define CALL(T) \
        gru_gates_backward((const T *)parts, deter, grad, weight, bias, (T *)dparts, ddeter, dparameters, n, d, eps, threads)
    half ? CALL(bf16) : CALL(float);
    #undef CALL
}

void mix_forward(const float *logits, float *y, long n, long k, float share, long threads) {
    k == 32 ? mix<32>(logits, y, n, k, share, threads) : mix<0>(logits, y, n, k, share, threads);
}

void mix_backward(const float *y, const float *grad, float *dlogits, long n, long k, float share, long threads) {
    k == 32 ? mix_gradient<32>(y, grad, dlogits, n, k, share, threads)
            : mix_gradient<0>(y, grad, dlogits, n, k, share, threads);
}

}
