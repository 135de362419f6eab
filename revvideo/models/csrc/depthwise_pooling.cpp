// Depthwise pooling on tokens (B, T, H, W, D), D innermost, and its two gradients: loops over the taps of the kernel,
// vectors over the channels. The weight is float32 (taps, d) and serves D / d heads; all sums are float32.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef uint16_t bfloat16;

// The mirror of `_Geometry` in compiled_pooling.py. Axes are T, H, W; strides are in elements, of B, T, H, W.
struct Geometry {
    int64_t batch, channels, kernels;
    int64_t volume[3], pooled[3], kernel[3], stride[3], padding[3];
    int64_t volume_strides[4], pooled_strides[4];
    int64_t threads;
};

template <int N>
struct Vector {
    typedef float Floats __attribute__((vector_size(4 * N)));
    typedef uint32_t Words __attribute__((vector_size(4 * N)));
    typedef uint16_t Halves __attribute__((vector_size(2 * N)));
};

template <int N>
inline typename Vector<N>::Floats load(const float* from) {
    typename Vector<N>::Floats x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

template <int N>
inline typename Vector<N>::Floats load(const bfloat16* from) {
    typename Vector<N>::Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return (typename Vector<N>::Floats)(__builtin_convertvector(halves, typename Vector<N>::Words) << 16);
}

template <int N>
inline void store(float* to, typename Vector<N>::Floats x) {
    std::memcpy(to, &x, sizeof(x));
}

template <int N>
inline void store(bfloat16* to, typename Vector<N>::Floats x) {
    auto words = (typename Vector<N>::Words)x;
    auto rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;  // to nearest, ties to even
    auto nan = (typename Vector<N>::Words)(x != x);                // rounding could carry a NaN over to infinity
    auto halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), typename Vector<N>::Halves);
    std::memcpy(to, &halves, sizeof(halves));
}

// Along one axis: which elements of the source, by which taps, each element of the result sums up.
struct Tap {
    int64_t tap, source;
};
typedef std::vector<std::vector<Tap>> Axis;

static Axis reads(const Geometry& g, int axis) {
    Axis of(g.pooled[axis]);
    for (int64_t out = 0; out < g.pooled[axis]; out++)
        for (int64_t tap = 0; tap < g.kernel[axis]; tap++) {
            int64_t in = out * g.stride[axis] - g.padding[axis] + tap;
            if (0 <= in && in < g.volume[axis]) of[out].push_back({tap, in});
        }
    return of;
}

static Axis transposed(const Axis& of, int64_t sources) {
    Axis to(sources);
    for (int64_t out = 0; out < (int64_t)of.size(); out++)
        for (const Tap& tap : of[out]) to[tap.source].push_back({tap.tap, out});
    return to;
}

// V vectors of N channels of one token: the sum over its taps.
template <int N, int V, class T>
inline void token_sum(const std::vector<const T*>& tokens, const std::vector<const float*>& taps, int64_t channel,
                      int64_t kernel, T* result) {
    typename Vector<N>::Floats sum[V] = {};
    for (size_t i = 0; i < tokens.size(); i++)
        for (int v = 0; v < V; v++)
            sum[v] += load<N>(tokens[i] + channel + v * N) * load<N>(taps[i] + kernel + v * N);
    for (int v = 0; v < V; v++) store<N>(result + channel + v * N, sum[v]);
}

// result[token] = sum over its taps of source[token'] * weight[tap]: pooling, or with transposed axes its input gradient.
template <class T>
static void sum_taps(const Geometry& g, const Axis axes[3], const T* source, const int64_t* source_strides,
                     const float* weight, T* result) {
    const int64_t sizes[3] = {(int64_t)axes[0].size(), (int64_t)axes[1].size(), (int64_t)axes[2].size()};
    const int64_t rows = g.batch * sizes[0] * sizes[1], channels = g.channels, kernels = g.kernels;
#pragma omp parallel for num_threads(g.threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t h = row % sizes[1], t = row / sizes[1] % sizes[0], b = row / sizes[1] / sizes[0];
        std::vector<const T*> tokens;
        std::vector<const float*> taps;
        for (int64_t w = 0; w < sizes[2]; w++) {
            tokens.clear();
            taps.clear();
            for (const Tap& in_t : axes[0][t])
                for (const Tap& in_h : axes[1][h])
                    for (const Tap& in_w : axes[2][w]) {
                        tokens.push_back(source + b * source_strides[0] + in_t.source * source_strides[1] +
                                         in_h.source * source_strides[2] + in_w.source * source_strides[3]);
                        taps.push_back(weight + ((in_t.tap * g.kernel[1] + in_h.tap) * g.kernel[2] + in_w.tap) * kernels);
                    }
            T* token = result + (row * sizes[2] + w) * channels;
            for (int64_t head = 0; head < channels; head += kernels) {
                int64_t k = 0;
                for (; k + 6 * LANES <= kernels; k += 6 * LANES) token_sum<LANES, 6>(tokens, taps, head + k, k, token);
                for (; k + LANES <= kernels; k += LANES) token_sum<LANES, 1>(tokens, taps, head + k, k, token);
                for (; k < kernels; k++) token_sum<1, 1>(tokens, taps, head + k, k, token);
            }
        }
    }
}

struct Range {
    int64_t begin, end;
};

// The outputs of a row of pooled tokens that `tap` reads inside the volume for.
static Range inside(const Geometry& g, int64_t tap) {
    const int64_t s = g.stride[2], shift = g.padding[2] - tap;  // input = s * output - shift
    const int64_t begin = shift > 0 ? (shift + s - 1) / s : 0;
    const int64_t last = g.volume[2] - 1 + shift;
    const int64_t end = last < 0 ? 0 : std::min(g.pooled[2], last / s + 1);
    return {begin, std::max(begin, end)};
}

// V vectors of N channels of one row, for K neighbouring taps: sum over the outputs w of grad[w] * volume[s * w + tap].
template <int N, int V, int K, class T>
inline void row_products(Range outputs, const T* grad, int64_t grad_step, const T* volume, int64_t volume_step,
                         int64_t tap_step, float* products, int64_t channels) {
    typename Vector<N>::Floats sum[K][V] = {};
    for (int64_t w = outputs.begin; w < outputs.end; w++)
        for (int v = 0; v < V; v++) {
            const auto g = load<N>(grad + w * grad_step + v * N);
            for (int k = 0; k < K; k++) sum[k][v] += g * load<N>(volume + w * volume_step + k * tap_step + v * N);
        }
    for (int k = 0; k < K; k++)
        for (int v = 0; v < V; v++) {
            float* to = products + k * channels + v * N;
            store<N>(to, load<N>(to) + sum[k][v]);
        }
}

template <int K, class T>
static void all_channels(Range outputs, const T* grad, int64_t grad_step, const T* volume, int64_t volume_step,
                         int64_t tap_step, float* products, int64_t channels) {
    if (outputs.begin >= outputs.end) return;
    int64_t c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES)
        row_products<LANES, 2, K>(outputs, grad + c, grad_step, volume + c, volume_step, tap_step, products + c, channels);
    for (; c + LANES <= channels; c += LANES)
        row_products<LANES, 1, K>(outputs, grad + c, grad_step, volume + c, volume_step, tap_step, products + c, channels);
    for (; c < channels; c++)
        row_products<1, 1, K>(outputs, grad + c, grad_step, volume + c, volume_step, tap_step, products + c, channels);
}

// One row of outputs against one row of the volume: products (taps along W, D). Three taps at a time share the loads of
// `grad` where all of them lie inside; `volume` is where output 0 reads with tap 0, which may lie before the row.
template <class T>
static void row_gradient(const Geometry& g, const T* grad, const T* volume, float* products) {
    const int64_t grad_step = g.pooled_strides[3], tap_step = g.volume_strides[3], volume_step = g.stride[2] * tap_step;
    for (int64_t first = 0; first < g.kernel[2]; first += 3) {
        const int64_t taps = std::min<int64_t>(3, g.kernel[2] - first);
        Range common = {0, taps == 3 ? g.pooled[2] : 0};
        for (int64_t tap = first; tap < first + taps; tap++) {
            common.begin = std::max(common.begin, inside(g, tap).begin);
            common.end = std::min(common.end, inside(g, tap).end);
        }
        if (common.begin >= common.end) common = {0, 0};
        all_channels<3>(common, grad, grad_step, volume + first * tap_step, volume_step, tap_step,
                        products + first * g.channels, g.channels);
        for (int64_t tap = first; tap < first + taps; tap++) {
            const Range own = inside(g, tap);
            const Range before = {own.begin, common.begin < common.end ? std::min(own.end, common.begin) : own.end};
            const Range after = {std::max(own.begin, common.end), common.begin < common.end ? own.end : 0};
            for (const Range& rest : {before, after})
                all_channels<1>(rest, grad, grad_step, volume + tap * tap_step, volume_step, tap_step,
                                products + tap * g.channels, g.channels);
        }
    }
}

// products (parts, taps, D), zeros before: each part sums up its share of the rows.
template <class T>
static void weight_gradient(const Geometry& g, const T* grad, const T* volume, float* products, int64_t parts) {
    const Axis times = reads(g, 0), heights = reads(g, 1);
    const int64_t rows = g.batch * g.pooled[0] * g.pooled[1];
#pragma omp parallel for num_threads(g.threads) schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float* own = products + part * g.kernel[0] * g.kernel[1] * g.kernel[2] * g.channels;
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            const int64_t h = row % g.pooled[1], t = row / g.pooled[1] % g.pooled[0], b = row / g.pooled[1] / g.pooled[0];
            const T* grad_row = grad + b * g.pooled_strides[0] + t * g.pooled_strides[1] + h * g.pooled_strides[2];
            for (const Tap& in_t : times[t])
                for (const Tap& in_h : heights[h])
                    row_gradient(g, grad_row,
                                 volume + b * g.volume_strides[0] + in_t.source * g.volume_strides[1] +
                                     in_h.source * g.volume_strides[2] - g.padding[2] * g.volume_strides[3],
                                 own + (in_t.tap * g.kernel[1] + in_h.tap) * g.kernel[2] * g.channels);
        }
    }
}

template <class T>
static void pool(const Geometry& g, const T* volume, const float* weight, T* pooled) {
    const Axis axes[3] = {reads(g, 0), reads(g, 1), reads(g, 2)};
    sum_taps(g, axes, volume, g.volume_strides, weight, pooled);
}

template <class T>
static void input_gradient(const Geometry& g, const T* grad, const float* weight, T* result) {
    const Axis axes[3] = {transposed(reads(g, 0), g.volume[0]), transposed(reads(g, 1), g.volume[1]),
                          transposed(reads(g, 2), g.volume[2])};
    sum_taps(g, axes, grad, g.pooled_strides, weight, result);
}

extern "C" {
void pool_float32(const Geometry* g, const float* volume, const float* weight, float* pooled) {
    pool(*g, volume, weight, pooled);
}
void pool_bfloat16(const Geometry* g, const bfloat16* volume, const float* weight, bfloat16* pooled) {
    pool(*g, volume, weight, pooled);
}
void input_gradient_float32(const Geometry* g, const float* grad, const float* weight, float* result) {
    input_gradient(*g, grad, weight, result);
}
void input_gradient_bfloat16(const Geometry* g, const bfloat16* grad, const float* weight, bfloat16* result) {
    input_gradient(*g, grad, weight, result);
}
void weight_gradient_float32(const Geometry* g, const float* grad, const float* volume, float* products, int64_t parts) {
    weight_gradient(*g, grad, volume, products, parts);
}
void weight_gradient_bfloat16(const Geometry* g, const bfloat16* grad, const bfloat16* volume, float* products,
                              int64_t parts) {
    weight_gradient(*g, grad, volume, products, parts);
}
}
