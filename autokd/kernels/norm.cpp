// Batch norm over rows of channels (channels innermost), with the addition of a residual and ReLU in the same passes over memory:
// two reads and a write forward, and the same backward where torch makes three times as many.
//
// Statistics are those of the training mode of Ioffe and Szegedy (ICML 2015). Sums run in float over a few thousand rows around
// the first row's value, then in double. Rows of any number of channels are walked in periods: a common multiple of the channels and
// of what a vector register holds, so that the innermost loops need no modulo.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

using bf16 = uint16_t;
using Floats = std::vector<float>;

constexpr int64_t LEAST_PERIOD = 256, MOST_PERIOD = 4096;  // values
constexpr int64_t PERIODS_IN_FLOAT = 64;                   // added up before the sum goes into a double

inline float wide(float value) { return value; }

inline float wide(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline void store(float* to, float value) { *to = value; }

inline void store(bf16* to, float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    *to = static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? nan : nearest);
}

int64_t period_of(int64_t channels) {
    const int64_t period = std::lcm(channels, LEAST_PERIOD);
    return period <= MOST_PERIOD ? period : channels;
}

Floats repeated(const float* of_channels, int64_t channels, int64_t period) {
    Floats out(period);
    for (int64_t j = 0; j < period; ++j) out[j] = of_channels[j % channels];
    return out;
}

// Two sums per channel of what `visit(at, a, b, count)` adds to `count` places of a and b, for all n values.
template <class Visit>
void two_sums(int64_t n, int64_t channels, int64_t period, double* one, double* two, Visit visit) {
    Floats first(period), second(period);
    for (int64_t at = 0; at < n;) {
        std::fill(first.begin(), first.end(), 0.0f);
        std::fill(second.begin(), second.end(), 0.0f);
        for (int64_t k = 0; k < PERIODS_IN_FLOAT && at < n; ++k, at += period)
            visit(at, first.data(), second.data(), std::min(period, n - at));
        for (int64_t j = 0; j < period; ++j) {
            one[j % channels] += first[j];
            two[j % channels] += second[j];
        }
    }
}

template <class T>
void moments(const T* x, int64_t rows, int64_t channels, float* mean, float* variance) {
    const int64_t n = rows * channels, period = period_of(channels);
    Floats first_row(channels);
    for (int64_t j = 0; j < channels; ++j) first_row[j] = wide(x[j]);
    const Floats origins = repeated(first_row.data(), channels, period);
    const float* __restrict origin = origins.data();
    std::vector<double> one(channels), two(channels);
    two_sums(n, channels, period, one.data(), two.data(), [=](int64_t at, float* __restrict a, float* __restrict b, int64_t count) {
        const T* __restrict from = x + at;
        for (int64_t j = 0; j < count; ++j) {
            const float value = wide(from[j]) - origin[j];
            a[j] += value;
            b[j] += value * value;
        }
    });
    for (int64_t j = 0; j < channels; ++j) {
        const double off = one[j] / rows, spread = two[j] / rows - off * off;
        mean[j] = static_cast<float>(first_row[j] + off);
        variance[j] = static_cast<float>(spread < 0 ? 0 : spread);  // NaN stays NaN
    }
}

template <class T, bool ADDS, bool RELU>
void normalise(const T* __restrict x, const T* __restrict residual, T* __restrict y, int64_t n, int64_t period,
               const float* __restrict scale, const float* __restrict shift) {
    for (int64_t at = 0; at < n; at += period) {
        const int64_t count = std::min(period, n - at);
        for (int64_t j = 0; j < count; ++j) {
            float value = wide(x[at + j]) * scale[j] + shift[j];
            if (ADDS) value += wide(residual[at + j]);
            if (RELU) value = value < 0 ? 0 : value;  // NaN stays NaN
            store(y + at + j, value);
        }
    }
}

template <class T>
void normalise_all(const T* x, const T* residual, T* y, int64_t n, int64_t channels, int64_t period, const float* scale,
                   const float* shift, bool relu) {
    const Floats scales = repeated(scale, channels, period), shifts = repeated(shift, channels, period);
    const auto run = residual ? (relu ? normalise<T, true, true> : normalise<T, true, false>)
                              : (relu ? normalise<T, false, true> : normalise<T, false, false>);
    run(x, residual, y, n, period, scales.data(), shifts.data());
}

template <class T>
void forward(const T* x, const T* residual, T* y, int64_t rows, int64_t channels, const float* weight, const float* bias, float eps,
             float momentum, float* running_mean, float* running_var, float* mean, float* inverse, bool relu) {
    const int64_t n = rows * channels, period = period_of(channels);
    Floats scale(channels), shift(channels), variance(channels);
    moments(x, rows, channels, mean, variance.data());
    for (int64_t j = 0; j < channels; ++j) {
        inverse[j] = 1.0f / std::sqrt(variance[j] + eps);
        scale[j] = weight[j] * inverse[j];
        shift[j] = bias[j] - mean[j] * scale[j];
        const float unbiased = static_cast<float>(variance[j] * (static_cast<double>(rows) / (rows - 1)));
        running_mean[j] += momentum * (mean[j] - running_mean[j]);
        running_var[j] += momentum * (unbiased - running_var[j]);
    }
    normalise_all(x, residual, y, n, channels, period, scale.data(), shift.data(), relu);
}

template <class T>
void frozen(const T* x, const T* residual, T* y, int64_t rows, int64_t channels, const float* weight, const float* bias, float eps,
            const float* running_mean, const float* running_var, bool relu) {
    Floats scale(channels), shift(channels);
    for (int64_t j = 0; j < channels; ++j) {
        scale[j] = weight[j] / std::sqrt(running_var[j] + eps);
        shift[j] = bias[j] - running_mean[j] * scale[j];
    }
    normalise_all(x, residual, y, rows * channels, channels, period_of(channels), scale.data(), shift.data(), relu);
}

enum Mask { NONE = 0, FROM_X = 1, FROM_Y = 2 };  // where ReLU let nothing through: nowhere, told by x alone, told by y

// Sums of the gradient and of gradient * (x - mean), for each channel. With FROM_Y the masked gradient is kept.
template <class T, int MASK>
void gradient_sums(const T* dy, const T* x, const T* y, T* kept, int64_t n, int64_t channels, int64_t period, const float* __restrict mean,
                   const float* __restrict scale, const float* __restrict shift, double* one, double* two) {
    two_sums(n, channels, period, one, two, [=](int64_t at, float* __restrict a, float* __restrict b, int64_t count) {
        const T* __restrict from = x + at;
        const T* __restrict given = dy + at;
        for (int64_t j = 0; j < count; ++j) {
            const float value = wide(from[j]);
            float gradient = wide(given[j]);
            if (MASK == FROM_X) gradient = value * scale[j] + shift[j] <= 0 ? 0 : gradient;
            if (MASK == FROM_Y) {
                gradient = wide(y[at + j]) <= 0 ? 0 : gradient;
                store(kept + at + j, gradient);
            }
            a[j] += gradient;
            b[j] += gradient * (value - mean[j]);
        }
    });
}

template <class T, bool MASKED>
void gradient_of_x(const T* __restrict dy, const T* __restrict x, T* __restrict dx, int64_t n, int64_t period,
                   const float* __restrict of_gradient, const float* __restrict of_x, const float* __restrict constant,
                   const float* __restrict scale, const float* __restrict shift) {
    for (int64_t at = 0; at < n; at += period) {
        const int64_t count = std::min(period, n - at);
        for (int64_t j = 0; j < count; ++j) {
            const float value = wide(x[at + j]);
            float gradient = wide(dy[at + j]);
            if (MASKED) gradient = value * scale[j] + shift[j] <= 0 ? 0 : gradient;
            store(dx + at + j, gradient * of_gradient[j] + value * of_x[j] + constant[j]);
        }
    }
}

template <class T>
void backward(const T* dy, const T* x, const T* y, T* kept, T* dx, int64_t rows, int64_t channels, const float* weight, const float* bias,
              const float* mean, const float* inverse, float* dweight, float* dbias, int mask) {
    const int64_t n = rows * channels, period = period_of(channels);
    Floats scale(channels), shift(channels), of_gradient(channels), of_x(channels), constant(channels);
    for (int64_t j = 0; j < channels; ++j) {
        scale[j] = weight[j] * inverse[j];
        shift[j] = bias[j] - mean[j] * scale[j];
    }
    const Floats means = repeated(mean, channels, period);
    const Floats scales = repeated(scale.data(), channels, period), shifts = repeated(shift.data(), channels, period);
    std::vector<double> one(channels), two(channels);
    const auto add_up = mask == FROM_Y ? gradient_sums<T, FROM_Y> : mask == FROM_X ? gradient_sums<T, FROM_X> : gradient_sums<T, NONE>;
    add_up(dy, x, y, kept, n, channels, period, means.data(), scales.data(), shifts.data(), one.data(), two.data());
    for (int64_t j = 0; j < channels; ++j) {
        dbias[j] = static_cast<float>(one[j]);
        dweight[j] = static_cast<float>(two[j] * inverse[j]);
        of_gradient[j] = scale[j];
        of_x[j] = static_cast<float>(-static_cast<double>(scale[j]) * inverse[j] * inverse[j] * two[j] / rows);
        constant[j] = static_cast<float>(-scale[j] * one[j] / rows - static_cast<double>(of_x[j]) * mean[j]);
    }
    const Floats a = repeated(of_gradient.data(), channels, period), b = repeated(of_x.data(), channels, period);
    const Floats c = repeated(constant.data(), channels, period);
    const auto run = mask == FROM_X ? gradient_of_x<T, true> : gradient_of_x<T, false>;
    run(mask == FROM_Y ? kept : dy, x, dx, n, period, a.data(), b.data(), c.data(), scales.data(), shifts.data());
}

}  // namespace

extern "C" {

// `half`: the images are bfloat16, else float. `residual` may be null. `mean` and `inverse` are written for the way back.
void norm_forward(int half, const void* x, const void* residual, void* y, int64_t rows, int64_t channels, const float* weight,
                  const float* bias, float eps, float momentum, float* running_mean, float* running_var, float* mean, float* inverse,
                  int relu) {
    if (half)
        forward(static_cast<const bf16*>(x), static_cast<const bf16*>(residual), static_cast<bf16*>(y), rows, channels, weight, bias, eps,
                momentum, running_mean, running_var, mean, inverse, relu);
    else
        forward(static_cast<const float*>(x), static_cast<const float*>(residual), static_cast<float*>(y), rows, channels, weight, bias,
                eps, momentum, running_mean, running_var, mean, inverse, relu);
}

// Eval mode: the running statistics.
void norm_frozen(int half, const void* x, const void* residual, void* y, int64_t rows, int64_t channels, const float* weight,
                 const float* bias, float eps, const float* running_mean, const float* running_var, int relu) {
    if (half)
        frozen(static_cast<const bf16*>(x), static_cast<const bf16*>(residual), static_cast<bf16*>(y), rows, channels, weight, bias, eps,
               running_mean, running_var, relu);
    else
        frozen(static_cast<const float*>(x), static_cast<const float*>(residual), static_cast<float*>(y), rows, channels, weight, bias,
               eps, running_mean, running_var, relu);
}

// `mask` is a Mask. With FROM_Y, `y` is read and `kept` becomes the gradient of the residual; else both may be null.
void norm_backward(int half, const void* dy, const void* x, const void* y, void* kept, void* dx, int64_t rows, int64_t channels,
                   const float* weight, const float* bias, const float* mean, const float* inverse, float* dweight, float* dbias,
                   int mask) {
    if (half)
        backward(static_cast<const bf16*>(dy), static_cast<const bf16*>(x), static_cast<const bf16*>(y), static_cast<bf16*>(kept),
                 static_cast<bf16*>(dx), rows, channels, weight, bias, mean, inverse, dweight, dbias, mask);
    else
        backward(static_cast<const float*>(dy), static_cast<const float*>(x), static_cast<const float*>(y), static_cast<float*>(kept),
                 static_cast<float*>(dx), rows, channels, weight, bias, mean, inverse, dweight, dbias, mask);
}
}
