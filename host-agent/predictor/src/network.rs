//! The network: monotone and without crossings by construction, not by training.
//!
//! ```text
//!   window ── two layers ──┬── levels  a[q]           one for each quantile and one for pressure
//!                          ├── steps   c[q][k] >= 0   (softplus)
//!                          └── shifts  b[k]
//!   candidate ── v[j][k] >= 0 (softplus) ──> basis  f[k] = sigmoid(sum_j v[j][k] x[j] + b[k])     rises with the size
//!
//!   z[q] = a[q] - sum_k c[q][k] f[k]                                                              falls with the size
//!   loss[q] = 1 - exp(-unit (softplus(z[0]) + .. + softplus(z[q])))   falls with the size, rises with the quantile
//!   pressure = sigmoid(z[last])                                                                   falls with the size
//! ```
//! The window says where the knees of the curve are and how deep they go, the candidate only where on it one stands.
//! So the layers run once for a VM and not once for a size, and what is left for each size are a few dozen
//! multiplications, done here without tensors: sixteen sizes cost less than one tensor operation.

#[cfg(feature = "train")]
use crate::Schema;
use crate::{Estimate, LEVELS};
use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
#[cfg(feature = "train")]
use burn::tensor::activation::sigmoid;
use burn::tensor::activation::{relu, softplus};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Outputs that are curves: the quantiles and pressure.
const CURVES: usize = LEVELS + 1;
/// The window's column that says whether a guest is given what it asks for.
#[cfg(feature = "train")]
const ANSWERED: &str = "answered";
/// A thousandth of a horizon, twelve times: what is less cannot be told from nothing.
#[cfg(feature = "train")]
const LEAST_UNIT: f32 = 0.012;

/// How large a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Columns of the window.
    pub window: usize,
    /// Columns of a candidate.
    pub candidate: usize,
    /// Width of the two layers.
    pub hidden: usize,
    /// Steps that a curve is made of.
    pub steps: usize,
}

impl Shape {
    fn head(self) -> usize {
        CURVES + CURVES * self.steps + self.steps
    }
}

/// The losses that a network reckons in: what is lost when nobody gives a guest what it asks for, and what is lost when somebody does,
/// which is twenty times less. So one network learns the shape of both, neither drowns the other, and the same rate, decay and
/// weight of pressure serve data in which half a horizon is lost now and then and data in which a hundredth is much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Units {
    /// The column that says whether it is given; none: it always is.
    column: Option<usize>,
    refused: f32,
    answered: f32,
}

impl Units {
    /// Of data that loses so much.
    #[cfg(feature = "train")]
    pub fn of<'a>(schema: &Schema, rows: impl Iterator<Item = (&'a [f32], f32)> + Clone) -> Self {
        let column = schema.window.iter().position(|name| name == ANSWERED);
        let blank = Self { column, refused: 1.0, answered: 1.0 };
        // Where training begins, the smallest quantile is a twelfth of a unit.
        let unit = |answered: bool| {
            let losses = rows.clone().filter(|(window, _)| blank.is_answered(window) == answered);
            let (count, sum) = losses.fold((0.0, 0.0), |(count, sum), (_, loss)| (count + 1.0, sum + f64::from(loss)));
            if count > 0.0 { ((12.0 * sum / count) as f32).clamp(LEAST_UNIT, 1.0) } else { 1.0 }
        };
        Self { column, refused: unit(false), answered: unit(true) }
    }

    fn is_answered(&self, window: &[f32]) -> bool {
        self.column.and_then(|at| window.get(at)).is_none_or(|answered| *answered >= 0.5)
    }

    /// That of a window, not scaled.
    pub fn at(&self, window: &[f32]) -> f32 {
        if self.is_answered(window) { self.answered } else { self.refused }
    }

    /// Whether a file's can be used.
    pub fn is_sound(&self, shape: Shape) -> bool {
        let sound = |unit: f32| unit > 0.0 && unit <= 1.0;
        sound(self.refused) && sound(self.answered) && self.column.is_none_or(|at| at < shape.window)
    }
}

impl Default for Units {
    fn default() -> Self {
        Self { column: None, refused: 1.0, answered: 1.0 }
    }
}

/// The weights. See the module's text for what they mean.
#[derive(Module, Debug)]
pub struct Network {
    first: Linear,
    second: Linear,
    head: Linear,
    slopes: Param<Tensor<2>>,
}

/// A batch's curves as tensors, for training.
#[cfg(feature = "train")]
pub(crate) struct Curves {
    /// Rows by quantiles.
    pub loss: Tensor<2>,
    /// Rows by one, before the sigmoid.
    pub pressure: Tensor<2>,
}

impl Network {
    /// A network whose weights come from `draw`, which gives numbers from 0 up to 1.
    ///
    /// Parameters are numbered from `first_id`: their ids are saved with them, and the same seed must give the same
    /// file.
    pub(crate) fn new(shape: Shape, first_id: u64, device: &Device, draw: &mut dyn FnMut() -> f32) -> Self {
        let mut next = first_id;
        let mut id = || {
            next += 1;
            ParamId::from(next)
        };
        // Kaiming's bound for a layer before relu; the head is drawn smaller, so that training begins at its bias.
        let mut layer = |input: usize, output: usize, gain: f32, bias: Vec<f32>| {
            let bound = gain * (6.0 / input.max(1) as f32).sqrt();
            let weight = (0..input * output).map(|_| (draw() * 2.0 - 1.0) * bound).collect();
            Linear {
                weight: param(id(), matrix(weight, input, output, device)),
                bias: Some(param(id(), Tensor::from_data(TensorData::new(bias, [output]), device))),
            }
        };
        let first = layer(shape.window, shape.hidden, 1.0, vec![0.0; shape.hidden]);
        let second = layer(shape.hidden, shape.hidden, 1.0, vec![0.0; shape.hidden]);
        let head = layer(shape.hidden, shape.head(), 0.1, Self::bias(shape));
        let slopes = (0..shape.candidate * shape.steps).map(|_| draw() * 2.0 - 1.0).collect();
        let slopes = param(id(), matrix(slopes, shape.candidate, shape.steps, device));
        Self { first, second, head, slopes }
    }

    /// Where training begins: small losses, knees spread over the range that candidates have.
    fn bias(shape: Shape) -> Vec<f32> {
        const LEVEL: f32 = -2.5;
        const STEP: f32 = -1.0;
        const SPREAD: f32 = 2.0;
        let mut bias = vec![LEVEL; CURVES];
        bias.resize(CURVES + CURVES * shape.steps, STEP);
        let middle = (shape.steps.max(2) - 1) as f32 / 2.0;
        bias.extend((0..shape.steps).map(|k| (k as f32 / middle - 1.0) * SPREAD));
        bias
    }

    fn head(&self, window: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.first.forward(window));
        self.head.forward(relu(self.second.forward(hidden)))
    }

    /// Curves of rows of scaled windows at one scaled candidate each; `unit`: each row's, see [`Units`].
    #[cfg(feature = "train")]
    pub(crate) fn forward(&self, window: Tensor<2>, candidate: Tensor<2>, unit: Tensor<2>) -> Curves {
        use burn::tensor::s;
        let [rows, _] = window.dims();
        let slopes = softplus(self.slopes.val(), 1.0);
        let [_, steps] = slopes.dims();
        let device = window.device();
        let head = self.head(window);
        let levels = head.clone().slice(s![.., 0..CURVES]);
        let depths = softplus(head.clone().slice(s![.., CURVES..CURVES + CURVES * steps]), 1.0);
        let shifts = head.slice(s![.., CURVES + CURVES * steps..CURVES + CURVES * steps + steps]);
        let basis = sigmoid(candidate.matmul(slopes) + shifts);
        let fall = (depths.reshape([rows, CURVES, steps]) * basis.reshape([rows, 1, steps])).sum_dim(2);
        let z = levels - fall.reshape([rows, CURVES]);
        let parts = softplus(z.clone().slice(s![.., 0..LEVELS]), 1.0);
        let sums = parts.matmul(running_sums(&device));
        Curves { loss: (sums * unit).neg().exp().neg().add_scalar(1.0), pressure: z.slice(s![.., LEVELS..CURVES]) }
    }

    /// The slopes as they act, for [`Head::estimate`].
    pub(crate) fn slopes(&self) -> Vec<f32> {
        floats(softplus(self.slopes.val(), 1.0))
    }

    /// What the layers say of scaled windows, one after the other.
    pub(crate) fn heads(&self, window: Tensor<2>) -> Vec<f32> {
        floats(self.head(window))
    }
}

/// What the layers said of one window, and what is needed to follow its curves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    shape: Shape,
    levels: &'a [f32],
    depths: &'a [f32],
    shifts: &'a [f32],
    slopes: &'a [f32],
    unit: f32,
}

impl<'a> Head<'a> {
    /// Cuts `heads` into one for each window. Depths in it are made positive, once for all sizes.
    pub(crate) fn each(
        shape: Shape,
        units: &'a [f32],
        heads: &'a mut [f32],
        slopes: &'a [f32],
    ) -> impl Iterator<Item = Self> {
        heads.chunks_exact_mut(shape.head()).zip(units).map(move |(head, &unit)| {
            let depths = CURVES..CURVES + CURVES * shape.steps;
            for value in &mut head[depths.clone()] {
                *value = soft(*value);
            }
            let head = &*head;
            let (levels, shifts) = (&head[..CURVES], &head[depths.end..]);
            Self { shape, levels, depths: &head[depths], shifts, slopes, unit }
        })
    }

    /// The estimate for a scaled candidate. `basis` is room for the steps.
    pub(crate) fn estimate(&self, candidate: &[f32], basis: &mut Vec<f32>) -> Estimate {
        let steps = self.shape.steps;
        basis.clear();
        basis.extend_from_slice(self.shifts);
        for (x, slopes) in candidate.iter().zip(self.slopes.chunks_exact(steps)) {
            for (sum, slope) in basis.iter_mut().zip(slopes) {
                *sum += x * slope;
            }
        }
        for value in basis.iter_mut() {
            *value = logistic(*value);
        }
        let z = |curve: usize| {
            let depths = &self.depths[curve * steps..(curve + 1) * steps];
            self.levels[curve] - depths.iter().zip(basis.iter()).map(|(d, f)| d * f).sum::<f32>()
        };
        let mut estimate = Estimate { loss: [0.0; LEVELS], pressure: logistic(z(LEVELS)) };
        let mut sum = 0.0;
        for (curve, loss) in estimate.loss.iter_mut().enumerate() {
            sum += soft(z(curve));
            *loss = 1.0 - (-self.unit * sum).exp();
        }
        estimate
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// As Burn's softplus: straight from 20 on, where `f32` sees no difference.
fn soft(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

fn param<const D: usize>(id: ParamId, tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(id, tensor).set_require_grad(true)
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as().expect("the flex backend computes in f32, and at once")
}

/// Rows of numbers as a tensor.
pub(crate) fn matrix(values: Vec<f32>, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// Ones on and above the diagonal: a row times this is its running sums.
#[cfg(feature = "train")]
fn running_sums(device: &Device) -> Tensor<2> {
    let ones = (0..LEVELS * LEVELS).map(|i| if i / LEVELS <= i % LEVELS { 1.0 } else { 0.0 }).collect();
    matrix(ones, LEVELS, LEVELS, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { window: 3, candidate: 2, hidden: 8, steps: 4 };

    /// Numbers that are not in order.
    fn draw() -> impl FnMut() -> f32 {
        let mut state = 1_u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        }
    }

    fn estimates(network: &Network, windows: &[f32], candidates: &[f32]) -> Vec<Vec<Estimate>> {
        let rows = windows.len() / SHAPE.window;
        let mut heads = network.heads(matrix(windows.to_vec(), rows, SHAPE.window, &Device::flex()));
        let slopes = network.slopes();
        let curve = |head: Head<'_>| {
            let mut basis = Vec::new();
            candidates.chunks_exact(SHAPE.candidate).map(|c| head.estimate(c, &mut basis)).collect()
        };
        Head::each(SHAPE, &vec![0.7; rows], &mut heads, &slopes).map(curve).collect()
    }

    #[test]
    fn curves_fall_with_the_size_and_do_not_cross_whatever_the_weights() {
        let mut number = draw();
        for id in 0..20 {
            // Weights far larger than training leaves.
            let network = Network::new(SHAPE, id, &Device::flex(), &mut || number() * 40.0 - 20.0);
            let mut other = draw();
            let windows: Vec<f32> = (0..30).map(|_| other() * 10.0 - 5.0).collect();
            let candidates: Vec<f32> = (0..32).flat_map(|i| [i as f32 / 4.0 - 4.0, (i / 3) as f32 - 5.0]).collect();
            for curve in estimates(&network, &windows, &candidates) {
                for estimate in &curve {
                    assert!(estimate.loss.is_sorted(), "{estimate:?}");
                    assert!(estimate.loss.iter().chain([&estimate.pressure]).all(|v| (0.0..=1.0).contains(v)));
                }
                for pair in curve.windows(2) {
                    assert!(pair[0].pressure >= pair[1].pressure, "{pair:?}");
                    assert!((0..LEVELS).all(|q| pair[0].loss[q] >= pair[1].loss[q]), "{pair:?}");
                }
            }
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn tensors_and_plain_arithmetic_say_the_same() {
        let device = Device::flex();
        let network = Network::new(SHAPE, 0, &device, &mut draw());
        let windows = [0.5, -1.0, 2.0, 0.0, 3.0, -0.2];
        let candidate = [0.3, -0.7];
        let curves = network.forward(
            matrix(windows.to_vec(), 2, 3, &device),
            matrix([candidate, candidate].concat(), 2, 2, &device),
            matrix(vec![0.7; 2], 2, 1, &device),
        );
        let (loss, pressure) = (floats(curves.loss), floats(sigmoid(curves.pressure)));
        for (row, curve) in estimates(&network, &windows, &candidate).iter().enumerate() {
            let near = |a: f32, b: f32| (a - b).abs() < 1e-5;
            assert!(near(curve[0].pressure, pressure[row]), "{curve:?} {pressure:?}");
            assert!((0..LEVELS).all(|q| near(curve[0].loss[q], loss[row * LEVELS + q])), "{curve:?} {loss:?}");
        }
    }
}
