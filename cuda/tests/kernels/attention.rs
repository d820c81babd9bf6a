//! Paged attention against plain loops in f64: every kernel, ragged rows, padding, splits, windows, caps and sinks.
//! What no token may see is NaN in the cache.

use sconce_cuda::ElementType::{self, Bf16, F16, F32, Fp8};
use sconce_cuda::ops::attention::{Params, Rows, attention, splits_for, splits_for_queries, workspace_len};
use sconce_cuda::ops::rope::Cache;
use sconce_cuda::{Buffer, Device};

use crate::typed::{download, rounded, upload};
use crate::{distance, noise, on_each_device};

#[derive(Debug, Clone)]
struct Case {
    ty: ElementType,
    cache: ElementType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    /// Context and tokens of each row.
    rows: Vec<(usize, usize)>,
    splits: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
    causal: bool,
}

/// A batch as a model would lay it out.
struct Batch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Vec<f32>,
    row_starts: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    table_starts: Vec<u32>,
}

impl Case {
    fn new(
        ty: ElementType,
        cache: ElementType,
        [heads, kv_heads, head_dim]: [usize; 3],
        rows: &[(usize, usize)],
    ) -> Self {
        let (splits, window, softcap, sinks, causal) = (1, None, None, false, true);
        Self {
            ty,
            cache,
            heads,
            kv_heads,
            head_dim,
            block_size: 16,
            rows: rows.to_vec(),
            splits,
            window,
            softcap,
            sinks,
            causal,
        }
    }

    fn tokens(&self) -> usize {
        self.rows.iter().map(|(_, tokens)| tokens).sum()
    }

    /// First position that a row's token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    fn batch(&self, seed: u64) -> Batch {
        let Case { kv_heads, head_dim, block_size, .. } = *self;
        let blocks_of = |(context, _): &(usize, usize)| context.div_ceil(block_size);
        let blocks = self.rows.iter().map(blocks_of).sum::<usize>() + 3;
        // Blocks of a row lie anywhere: a step that shares no factor with their number visits each once.
        let step = (blocks / 2..).find(|step| (2..=blocks).all(|d| blocks % d != 0 || step % d != 0)).unwrap_or(1);
        let mut batch = Batch {
            q: rounded(self.ty, &noise(seed, self.tokens() * self.heads * head_dim)),
            k: vec![f32::NAN; blocks * kv_heads * block_size * head_dim],
            v: vec![f32::NAN; blocks * kv_heads * block_size * head_dim],
            sinks: noise(seed + 3, self.heads),
            row_starts: vec![0],
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            table_starts: vec![0],
        };
        let (mut next, mut token) = (0, 0);
        for (row, (context, tokens)) in self.rows.iter().copied().enumerate() {
            let table: Vec<u32> =
                (next..next + context.div_ceil(block_size)).map(|i| (i * step % blocks) as u32).collect();
            next += table.len();
            token += tokens;
            let first = if context == 0 { 0 } else { self.first_seen(context - tokens) };
            for position in first..context {
                for head in 0..kv_heads {
                    let place = self.place(&table, head, position);
                    let own = seed + (row * 1000 + position * 7 + head) as u64 * 2 + 10;
                    batch.k[place..place + head_dim].copy_from_slice(&rounded(self.cache, &noise(own, head_dim)));
                    batch.v[place..place + head_dim].copy_from_slice(&rounded(self.cache, &noise(own + 1, head_dim)));
                }
            }
            batch.row_starts.push(token as u32);
            batch.context_lens.push(context as u32);
            batch.block_tables.extend(&table);
            batch.table_starts.push(batch.block_tables.len() as u32);
        }
        batch
    }

    fn place(&self, table: &[u32], kv_head: usize, position: usize) -> usize {
        let block = table[position / self.block_size] as usize;
        ((block * self.kv_heads + kv_head) * self.block_size + position % self.block_size) * self.head_dim
    }

    fn scale(&self) -> f32 {
        // Larger than usual, so that weights differ.
        2.0 / (self.head_dim as f32).sqrt()
    }

    fn wanted(&self, batch: &Batch) -> Vec<f32> {
        let mut out = Vec::new();
        for (row, (context, tokens)) in self.rows.iter().copied().enumerate() {
            let table = &batch.block_tables[batch.table_starts[row] as usize..batch.table_starts[row + 1] as usize];
            for index in 0..tokens {
                let token = batch.row_starts[row] as usize + index;
                for head in 0..self.heads {
                    let query = &batch.q[(token * self.heads + head) * self.head_dim..][..self.head_dim];
                    let own = if self.causal { (context + index).checked_sub(tokens) } else { context.checked_sub(1) };
                    let position = own.filter(|_| context > 0);
                    let seen = position.map_or(0..0, |position| self.first_seen(position)..position + 1);
                    out.extend(self.attend(batch, table, query, head, seen));
                }
            }
        }
        out
    }

    fn attend(
        &self,
        batch: &Batch,
        table: &[u32],
        query: &[f32],
        head: usize,
        seen: std::ops::Range<usize>,
    ) -> Vec<f32> {
        let kv_head = head / (self.heads / self.kv_heads);
        let score = |position: usize| {
            let key = &batch.k[self.place(table, kv_head, position)..][..self.head_dim];
            let product: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let score = product * f64::from(self.scale());
            self.softcap.map_or(score, |cap| (score / f64::from(cap)).tanh() * f64::from(cap))
        };
        let weights: Vec<f64> = seen.clone().map(|position| score(position).exp()).collect();
        let sink = if self.sinks { f64::from(batch.sinks[head]).exp() } else { 0.0 };
        let total = (weights.iter().sum::<f64>() + sink).max(f64::MIN_POSITIVE);
        let mut out = vec![0.0_f64; self.head_dim];
        for (weight, position) in weights.iter().zip(seen) {
            let value = &batch.v[self.place(table, kv_head, position)..][..self.head_dim];
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / total * f64::from(*value));
        }
        out.into_iter().map(|x| x as f32).collect()
    }

    fn run(&self, device: &Device, batch: &Batch) -> Vec<f32> {
        let len = workspace_len(self.tokens(), self.heads, self.head_dim, self.splits);
        self.run_with(device, batch, &device.zeros(len, F32).unwrap())
    }

    fn run_with(&self, device: &Device, batch: &Batch, workspace: &Buffer) -> Vec<f32> {
        let up = |values: &[u32]| device.upload(values).unwrap();
        let (row_starts, context_lens) = (up(&batch.row_starts), up(&batch.context_lens));
        let (block_tables, table_starts) = (up(&batch.block_tables), up(&batch.table_starts));
        let q = upload(device, self.ty, &batch.q);
        let (k, v) = (upload(device, self.cache, &batch.k), upload(device, self.cache, &batch.v));
        let sinks = upload(device, F32, &batch.sinks);
        let rows = Rows {
            row_starts: row_starts.all(),
            context_lens: context_lens.all(),
            block_tables: block_tables.all(),
            table_starts: table_starts.all(),
            rows: self.rows.len(),
            tokens: self.tokens(),
            query_max: self.rows.iter().map(|(_, tokens)| *tokens).max().unwrap(),
        };
        let sinks = self.sinks.then(|| sinks.all());
        let params =
            Params { scale: self.scale(), window: self.window, softcap: self.softcap, sinks, causal: self.causal };
        let cache = self.cache_of(&k, &v);
        let out = device.alloc(batch.q.len(), self.ty).unwrap();
        let (work, to) = (workspace.all(), out.all());
        attention(device, q.all(), &cache, self.heads, &rows, &params, self.splits, work, to).unwrap();
        download(&out)
    }

    fn cache_of<'a>(&self, k: &'a Buffer, v: &'a Buffer) -> Cache<'a> {
        let Case { kv_heads, block_size, head_dim, .. } = *self;
        Cache { k: k.all(), v: v.all(), kv_heads, block_size, head_dim }
    }

    fn check(&self, device: &Device, seed: u64) {
        let batch = self.batch(seed);
        let (found, wanted) = (self.run(device, &batch), self.wanted(&batch));
        let width = self.heads * self.head_dim;
        let most = match self.ty {
            F16 => 2e-3,
            Bf16 => 1.2e-2,
            _ => 3e-6,
        };
        for (token, (found, wanted)) in found.chunks_exact(width).zip(wanted.chunks_exact(width)).enumerate() {
            let apart = distance(found, wanted);
            assert!(apart < most, "{apart} at token {token} of {self:?}");
        }
    }
}

fn check_all(cases: &[Case]) {
    on_each_device(|device| cases.iter().zip(1..).for_each(|(case, seed)| case.check(device, 10_000 * seed)));
}

const DECODE: [(usize, usize); 6] = [(1, 1), (17, 1), (0, 1), (64, 1), (65, 1), (150, 1)];
const RAGGED: [(usize, usize); 5] = [(40, 3), (0, 1), (97, 33), (9, 9), (130, 1)];

#[test]
fn decode_on_tensor_cores() {
    let mut cases = Vec::new();
    for (index, shape) in [[8, 2, 64], [2, 2, 128], [20, 1, 16], [7, 1, 80], [2, 1, 256]].into_iter().enumerate() {
        for (ty, cache) in [(F16, F16), (F16, Fp8), (Bf16, Bf16), (Bf16, Fp8)] {
            cases.push(Case { splits: 1 + index % 2 * 2, ..Case::new(ty, cache, shape, &DECODE) });
        }
    }
    // A group of more heads than a tile has rows, heads of 16 bytes, blocks of any size.
    cases.push(Case { block_size: 7, splits: 32, ..Case::new(Bf16, Bf16, [33, 1, 8], &DECODE) });
    check_all(&cases);
}

#[test]
fn one_workspace_serves_calls_of_any_size() {
    on_each_device(|device| {
        let workspace = device.zeros(workspace_len(64, 8, 16, 8), F32).unwrap();
        // Splits come together in the last block, in a kernel of their own, and in the last block again.
        let many: Vec<(usize, usize)> = (0..40).map(|row| (row * 7, usize::from(row > 0))).collect();
        let few = Case { splits: 8, ..Case::new(Bf16, Bf16, [8, 2, 16], &DECODE) };
        let long = Case { splits: 3, ..Case::new(Bf16, Bf16, [8, 2, 16], &RAGGED) };
        let wide = Case { splits: 2, sinks: true, ..Case::new(F16, F16, [8, 8, 8], &many) };
        for (case, seed) in [&few, &long, &wide, &few, &wide].into_iter().zip(1..) {
            let batch = case.batch(seed * 10_000);
            let (found, wanted) = (case.run_with(device, &batch, &workspace), case.wanted(&batch));
            let apart = distance(&found, &wanted);
            assert!(apart < 1.2e-2, "{apart} in {case:?}");
        }
        assert!(workspace.to_vec::<f32>().unwrap()[..1024] == [0.0; 1024], "counters stand at 0 again");
    });
}

#[test]
fn windows_caps_and_sinks_in_decode() {
    let plain = Case::new(Bf16, Bf16, [8, 2, 64], &DECODE);
    check_all(&[
        Case { window: Some(20), ..plain.clone() },
        Case { window: Some(1), splits: 2, ..plain.clone() },
        Case { softcap: Some(1.5), sinks: true, ..plain.clone() },
        Case { window: Some(70), softcap: Some(0.7), sinks: true, splits: 4, cache: Fp8, ..plain },
    ]);
}

#[test]
fn few_queries_a_row() {
    check_all(&[
        Case::new(F16, F16, [4, 1, 64], &[(5, 5), (80, 8), (0, 2), (33, 1)]),
        Case { splits: 3, window: Some(9), ..Case::new(Bf16, Fp8, [2, 1, 64], &[(70, 3), (100, 16)]) },
    ]);
}

#[test]
fn prefill_on_tensor_cores() {
    let mut cases = vec![
        Case { splits: 2, ..Case::new(Bf16, Bf16, [4, 1, 64], &RAGGED) },
        Case::new(F16, F16, [3, 3, 24], &[(150, 150), (70, 64)]),
        Case::new(F16, F16, [5, 1, 128], &RAGGED),
        Case::new(Bf16, Bf16, [1, 1, 256], &RAGGED),
        Case { block_size: 5, ..Case::new(Bf16, Fp8, [4, 1, 112], &RAGGED) },
        Case { splits: 3, ..Case::new(F16, Fp8, [2, 1, 192], &RAGGED) },
        Case::new(Bf16, Fp8, [4, 2, 32], &RAGGED),
    ];
    let plain = Case::new(F16, F16, [4, 1, 16], &RAGGED);
    cases.push(Case { window: Some(21), ..plain.clone() });
    cases.push(Case { window: Some(70), softcap: Some(0.9), sinks: true, splits: 2, ..plain });
    check_all(&cases);
}

#[test]
fn both_directions() {
    let rows = [(70, 70), (0, 2), (9, 9), (131, 131)];
    let case = |ty, shape, rows: &[(usize, usize)]| Case { causal: false, ..Case::new(ty, ty, shape, rows) };
    check_all(&[
        case(F16, [2, 2, 32], &rows),
        Case { splits: 2, ..case(Bf16, [4, 2, 16], &[(5, 5), (3, 3), (70, 8)]) },
        case(F32, [2, 2, 10], &rows),
    ]);
}

#[test]
fn plain_loops_for_every_pair_of_types() {
    let mut cases = Vec::new();
    for ty in [F32, F16, Bf16] {
        for cache in [F32, F16, Bf16, Fp8] {
            // 10 elements are no 16 bytes of any type.
            cases.push(Case::new(ty, cache, [4, 2, 10], &RAGGED));
        }
    }
    let plain = Case::new(F32, F32, [4, 2, 32], &[(300, 2), (0, 1), (129, 40)]);
    cases.push(Case { splits: 3, ..plain.clone() });
    cases.push(Case { window: Some(140), softcap: Some(2.0), sinks: true, ..plain.clone() });
    cases.push(Case { window: Some(30), sinks: true, splits: 2, ..plain });
    cases.push(Case::new(F32, F32, [2, 1, 576], &[(20, 2)]));
    check_all(&cases);
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    on_each_device(|device| {
        for (rows, splits) in [(&DECODE[..], 3), (&[(9, 9), (97, 37)], 1)] {
            let case = Case { splits, ..Case::new(Bf16, Bf16, [4, 1, 16], rows) };
            let batch = case.batch(5);
            let together = case.run(device, &batch);
            // The same last row behind others: its contents are the same, its place and its blocks are not.
            let last = *rows.last().unwrap();
            let mut turned = case.clone();
            turned.rows = if last.1 == 1 { vec![(12, 1), last] } else { vec![(50, 40), (30, 2), last] };
            let mut other = turned.batch(6);
            let table = |case: &Case, batch: &Batch| {
                let row = case.rows.len() - 1;
                batch.block_tables[batch.table_starts[row] as usize..].to_vec()
            };
            let (from_table, to_table) = (table(&case, &batch), table(&turned, &other));
            for position in 0..last.0 {
                let (from, to) = (case.place(&from_table, 0, position), turned.place(&to_table, 0, position));
                other.k[to..to + 16].copy_from_slice(&batch.k[from..from + 16]);
                other.v[to..to + 16].copy_from_slice(&batch.v[from..from + 16]);
            }
            let (start, own) = (batch.q.len() - last.1 * 64, other.q.len() - last.1 * 64);
            other.q[own..].copy_from_slice(&batch.q[start..]);
            assert_eq!(turned.run(device, &other)[own..], together[start..]);
        }
    });
}

#[test]
fn many_rows_find_their_tiles() {
    // More rows than the lanes of a warp, and of every length.
    let rows: Vec<(usize, usize)> = (0..75).map(|i| (i % 19 + usize::from(i % 5 == 0) * 40, i % 19)).collect();
    let ragged = Case { block_size: 8, ..Case::new(F16, F16, [4, 2, 8], &rows) };
    check_all(&[ragged.clone(), Case { ty: F32, cache: F32, ..ragged }]);
}

#[test]
fn splits_fill_the_device() {
    for (rows, kv_heads, wanted) in [(1, 8, 32), (4, 8, 9), (16, 8, 3), (24, 8, 2), (25, 8, 1), (256, 8, 1), (0, 8, 32)]
    {
        assert_eq!(splits_for(rows, kv_heads, 132), wanted, "{rows} rows of {kv_heads}");
    }
    for (rows, query_max, wanted) in [(1, 1, 32), (4, 1, 9), (4, 8, 5), (4, 9, 1), (1, 4000, 1)] {
        assert_eq!(splits_for_queries(rows, query_max, (32, 8), 132), wanted, "{rows} rows of {query_max}");
    }
    assert_eq!((workspace_len(3, 4, 16, 1), workspace_len(3, 4, 16, 2)), (0, 1024 + 2 * 3 * 4 * 18));
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each_device(|device| {
        let case = Case::new(F32, F32, [4, 2, 8], &[(3, 1), (5, 1)]);
        let floats = device.zeros(1024, F32).unwrap();
        let ints = device.zeros(3, ElementType::U32).unwrap();
        let (cache, all) = (case.cache_of(&floats, &floats), ints.all());
        let rows = Rows {
            row_starts: all,
            context_lens: all,
            block_tables: all,
            table_starts: all,
            rows: 2,
            tokens: 2,
            query_max: 1,
        };
        let params = Params { scale: 1.0, window: None, softcap: None, sinks: None, causal: true };
        let refused = |heads: usize, rows: Rows, params: Params, splits: usize, words: &str| {
            let (q, work) = (floats.all(), floats.range(0, 64));
            let error = attention(device, q, &cache, heads, &rows, &params, splits, work, q).unwrap_err();
            assert!(error.to_string().contains(words), "{error} for {words}");
        };
        refused(3, rows, params, 1, "3 heads of 8 over 2 kv heads");
        refused(4, Rows { rows: 3, ..rows }, params, 1, "row_starts has 3 elements, 4 are needed");
        refused(4, Rows { tokens: 3, ..rows }, params, 1, "2 rows of at most 1 tokens are not 3 tokens");
        refused(4, Rows { tokens: 40, query_max: 20, ..rows }, params, 1, "q has 1024 elements");
        refused(4, rows, Params { window: Some(0), ..params }, 1, "a window of Some(0)");
        refused(4, rows, Params { softcap: Some(-1.0), ..params }, 1, "a softcap of Some(-1.0)");
        refused(4, rows, Params { scale: -1.0, ..params }, 1, "a scale of -1");
        refused(4, rows, Params { sinks: Some(floats.range(0, 3)), ..params }, 1, "sinks has 3 elements");
        refused(4, rows, Params { window: Some(2), causal: false, ..params }, 1, "both directions");
        refused(4, rows, params, 33, "33 splits");
        refused(4, rows, params, 2, "workspace has 64 elements, 1184 are needed");
    });
}
