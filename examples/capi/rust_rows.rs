//! Rust: apply a separate mask to each row of a float32 array; row i has call number i.
//!
//! Build with `rustc --crate-type cdylib -O rust_rows.rs`. The address of the table is
//! `cdropout.get_table()`.
use std::os::raw::{c_int, c_void};

const FLOAT32: c_int = 0; // cdropout_dtype

/// The struct cdropout_mask.
#[repr(C)]
struct Mask {
    seed: u64,
    call: u64,
    threshold: u64,
    scale: f64,
}

/// The first fields of the struct cdropout_table, up to the last function that is used.
#[repr(C)]
pub struct Table {
    version: u32,
    size: u32,
    mask_init: unsafe extern "C" fn(*mut Mask, u64, u64, f64) -> c_int,
    apply: unsafe extern "C" fn(
        c_int,
        u32,
        *const c_void,
        *mut c_void,
        usize,
        *const Mask,
        u64,
    ) -> c_int,
}

/// Write dropout of each row of x to y. Return -1 if p is not in [0, 1], otherwise 0.
///
/// # Safety
/// x and y point to rows * columns elements and do not overlap.
#[no_mangle]
pub unsafe extern "C" fn dropout_rows(
    kernels: &Table,
    x: *const f32,
    y: *mut f32,
    rows: usize,
    columns: usize,
    p: f64,
    seed: u64,
) -> c_int {
    let mut mask = Mask { seed: 0, call: 0, threshold: 0, scale: 0.0 };
    if (kernels.mask_init)(&mut mask, seed, 0, p) < 0 {
        return -1;
    }
    for row in 0..rows {
        mask.call = row as u64;
        let (from, to) = (x.add(row * columns), y.add(row * columns));
        (kernels.apply)(FLOAT32, 0, from.cast(), to.cast(), columns, &mask, 0);
    }
    0
}
