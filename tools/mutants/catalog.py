"""Mutants per file and function: (name, pattern, replacement) or (name, pattern, replacement, number).

anchors.py describes patterns. A pattern must match once in its function, unless `number` (from 1)
selects one of several matches. If a name ends in @ and an instruction set, the mutant is tested
with the kernels for that set; other mutants of kernels are tested with those for avx512. Each
mutant must change a result or an error that a test can observe, not only the time of a call.
"""
# ruff: noqa: E501
# fmt: off

MUTANTS = {
    "_core/stream.pxd": {
        "mix": [
            ("last shift", "$z >> 31", "$z >> 32"),
        ],
        "draw": [
            ("rotation of the sum", "($r << 17) | ($r >> 47)", "($r << 16) | ($r >> 48)"),
            ("rotation", "($b << 28) | ($b >> 36)", "($b >> 28) | ($b << 36)"),
        ],
        "mix_lanes": [
            ("last xor", "$z[0] ^= $z[0] >> 31", "pass"),
        ],
        "seed_block": [
            ("first lane", "LANES * $block + 1", "LANES * $block"),
            ("order of lanes@avx2", "LANE_OFFSETS + $v * (LANES // VECTORS)", "LANE_OFFSETS + (VECTORS - 1 - $v) * (LANES // VECTORS)"),
            ("second seed", "$s[$v] + $c", "$s[$v]"),
        ],
        "open_stream": [
            ("key", "mix($seed + GAMMA)", "mix($seed)"),
            ("increment of 0", "if $c == 0:", "if $c == 2:"),
            ("tie", "mix($s.K + $s.c)", "mix($s.K)"),
            ("rest of p", "$t << ROUNDS", "$t << (ROUNDS - 1)"),
            ("short p", "64 - lowest_bit($t)", "63 - lowest_bit($t)"),
            ("skipped rounds", "* <uint64_t>$s.rounds", "* <uint64_t>ROUNDS"),
        ],
        "ties_dropped": [
            ("element", "$first + $i + 1", "$first + $i"),
            ("bit", "<uint64_t>1 << $i", "<uint64_t>1 << (63 - $i)"),
        ],
        "drop_ties": [
            ("bits", "& ~$left[$lane]", "| $left[$lane]"),
        ],
        "begin_part": [
            ("part@baseline", "$s.s1[$first + $v]", "$s.s1[$v]"),
        ],
        "draw_round": [
            ("dropped", "|= $u[$v] & ~$r", "|= $u[$v] & $r"),
        ],
        "end_part": [
            ("ties of all vectors@avx2", "$left |= $u[$v]", "$left = $u[$v]"),
            ("state", "$s.s1[$f + $v] = $r.s1[$v]", "pass"),
            ("ties", "if $s.rest and any_bit($left):", "if False:"),
        ],
        "next_group": [
            ("seeding", "$g % BLOCK == 0", "$g % (2 * BLOCK) == 0"),
        ],
        "draw_group": [
            ("rounds", "range($s.rounds)", "range($s.rounds - 1)"),
        ],
    },
    "_core/bits.pxd": {
        "write_bits": [
            ("bits above", "$word &= $*e", "pass"),
            ("held", "$held |= $word << $count", "$held = $word << $count"),
        ],
        "write_group": [
            ("bytes", "memcpy($to, $bits, 64)", "memcpy($to, $bits, 56)"),
            ("held", "$held | $word << $count", "$word << $count"),
        ],
        "spread_bits": [
            ("order", "0x8040201008040201", "0x0102040810204080"),
        ],
        "pack_bools": [
            ("highest bit", "($lanes | ($lanes &", "(($lanes &"),
        ],
        "bits64_at": [("last byte", "<uint64_t>$b[8] << 1 << (63 - $s)", "0")],
        "reversed_bits": [("bytes", "reverse_bytes64($b)", "$b")],
        "exchange": [("first", "$a[0] ^= $t << $s", "pass")],
        "transpose": [("rows of vectors", "$m[8 * $j + $i] = $r[8 * $i + $j]", "$m[8 * $i + $j] = $r[8 * $i + $j]")],
        "append_bits": [("next", "$first + $done", "$first")],
        "reversed_bits64_at": [
            ("first bits", "63 - $f", "62 - $f"),
            ("other bits", "$f - 63", "$f - 62"),
        ],
        "append_repeated": [("all bits", "0 - <uint64_t>$b", "<uint64_t>$b")],
        "append_strided": [
            ("rest", "if $n % 64:", "if False:"),
        ],
        "append_rows": [("carry", "$first -= <uint64_t>$a[$i].stride * <uint64_t>$a[$i].length", "pass")],
        "put_bits": [("last byte", "if $s + $n > 64:", "if False:")],
        "interleave": [
            ("row", "$v << $i", "$v"),
        ],
    },
    "_core/select.pxd": {
        "step": [
            ("bits of doubles", "* $f, $keep, $i", "* $f, $keep, 0", 1),
        ],
        "bits_at": [
            ("last byte", "$b[($s + STEP - 1) // 8]", "$b[4]"),
            ("shift", "<< 32) >> $s", "<< 32) >> ($s & 6)"),
        ],
        "few_bits_at": [
            ("bytes", "+ 7) // 8", "+ 8) // 8"),
            ("shift", "$bits >> $first % 8", "$bits"),
        ],
        "step_few": [
            ("read", "memcpy($a, $b, $n * sizeof(element))", "memcpy($a, $b, STEP * sizeof(element))", 1),
            ("written", "memcpy($a, $b, $n * sizeof(element))", "memcpy($a, $b, STEP * sizeof(element))", 2),
        ],
        "elements_to_line": [
            ("elements", "% LINE_BYTES // sizeof(element)", "% LINE_BYTES"),
        ],
        "mask_and_scale": [
            ("bits after the line", "$first += $head", "pass", 3),
            ("whole bytes", "$first % 8 == 0", "$first % 4 == 0"),
            ("shifted bits", "bits_at($keep, $first + STEP * $i)", "bits_at($keep, $first + $i)"),
            ("bits of the tail", "$first += $n // STEP * STEP", "pass", 3),
        ],
        "step_bias_dropout_add": [
            ("residual of floats", "load_f32(<f32*>$r + $i) + kept_f32", "kept_f32"),
            ("bits of doubles", "* $f, $keep, $i", "* $f, $keep, 0", 1),
        ],
        "apply_bias_dropout_add": [
            ("bias", "$a += STEP", "pass", 2),
            ("bits of the tail", "few_bits_at($keep, $first, $rest)", "0"),
            ("bias of the tail", "memcpy($buffer[1], $*e)", "pass"),
        ],
        "add_reals_to": [
            ("sum", "$total += $value", "$total = $value"),
        ],
    },
    "_core/half.h": {
        "cd_round_bf16": [
            ("tie", "0x15", "0x55"),
            ("tie@baseline", "0x7FFF + ($u >> 16 & 1)", "0x8000"),
        ],
        "cd_step_bf16": [
            ("order", "{1, 33, 3, 35,", "{33, 1, 3, 35,"),
            ("lower bits", "$v & 0xFFFF0000", "$v", 1),
            ("tie@avx2", "~$u & 1", "$u & 1"),
            ("low half@baseline", "$low >> 16 | ($high & 0xFFFF0000)", "$low | ($high & 0xFFFF0000)"),
        ],
        "cd_step_f16": [
            ("rounding", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO", 1),
            ("rounding@avx2", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO", 2),
            ("bits@avx2", "$rows[$k[$i]]", "$rows[$k[0]]"),
            ("sign@baseline", "| ($v & 0x80008000)", "| 0"),
        ],
        "cd_scale_magnitude_f16": [
            ("subnormals@baseline", "0x1p-14f", "0x1p-15f"),
        ],
        "cd_scale_f16": [
            ("NaN@baseline", "0x7C01", "0x7C00"),
            ("quiet@baseline", "(($v | $q) & $s)", "($v & $s)"),
        ],
        "cd_fast_limit_f16": [
            ("exponent@baseline", "- 126", "- 127"),
        ],
    },
    "_core/simd.h": {
        "cd_kept_f32": [
            ("bits@avx2", "$i * (CD_BYTES / 4)", "$i * (CD_BYTES / 8)"),
        ],
        "cd_kept_f64": [
            ("bits@baseline", "$i * (CD_BYTES / 8)", "$i * (CD_BYTES / 4)"),
        ],
        "CD_LANE_BITS_64": [
            ("lane@avx2", "{1, 1, 2, 2, 4, 4, 8, 8}", "{1, 1, 2, 2, 4, 4, 8, 4}"),
        ],
        "cd_fill_bit_masks": [
            ("order@avx2", "$bits >> $lane & 1", "$bits >> (7 - $lane) & 1"),
        ],
        "cd_kept_16": [
            ("upper half@avx2", "$rows[$k[2 * $i + 1]]", "$rows[$k[2 * $i]]"),
            ("bits@baseline", "$rows[$k[$i]]", "$rows[$k[0]]"),
        ],
        "cd_any": [
            ("first lane", "_mm512_test_epi64_mask((__m512i)$v, (__m512i)$v) != 0", "_mm512_test_epi64_mask((__m512i)$v, (__m512i)$v) > 1"),
            ("all lanes@avx2", "!_mm256_testz_si256($*e)", "0"),
        ],
        "cd_store_streaming": [
            ("end", "$i < $bytes / CD_BYTES", "$i + 1 < $bytes / CD_BYTES"),
        ],
    },
    "_core/softmax.h": {
        "cd_exp_f32": [
            ("smallest exponent", "-87.0f", "-60.0f"),
            ("power of 2", "+ 127", "+ 126"),
            ("positive exponents", "$x > CD_FILL(cd_f32, 0)", "$x > CD_FILL(cd_f32, 100)"),
            ("terms", "$i < 8", "$i < 6"),
            ("small part of log 2", "2.12194440e-4f", "0.0f"),
        ],
        "cd_exp_f64": [
            ("power of 2", "+ 1023", "+ 1022"),
            ("terms", "$i < 14", "$i < 11"),
        ],
        "cd_visible": [
            ("row", "$m->visible + $row : $m->columns", "$m->visible : $m->columns"),
        ],
        "cd_load_keep": [
            ("position", "$row * $m->bits_per_row + $column", "$row * $m->columns + $column"),
            ("last byte", "<< 32", "<< 40"),
        ],
    },
    "_core/view.pxd": {
        "compute_layout": [
            ("backwards", "$d.stride[$a] = -$d.stride[$a]", "pass"),
        ],
    },
    "_core/rows.pxd": {
        "next_row": [
            ("mask", "$r.mask -= <uint64_t>$a.mask * $a.length", "pass"),
            ("y", "$r.y -= <size_t>$a.y * $a.length", "pass"),
        ],
    },
    "_core/tiles.pxd": {
        "append_stream": [
            ("group", "$start - $first", "$start"),
        ],
        "rows_are_runs": [
            ("mask", "if $r.mask != 1:", "if False:"),
        ],
    },
    "_core/kernels.pyx": {
        "apply_and_draw": [
            ("rounds left@baseline", "range($together, $rounds)", "range($together + 1, $rounds)"),
            ("part@baseline", "begin_part(&$r, $s, $part)", "begin_part(&$r, $s, 0)"),
        ],
        "apply_stream": [
            ("group", "open_stream(&$s, $m, $start - $first)", "open_stream(&$s, $m, $start)"),
            ("first part", "min(GROUP - $first, $n)", "min(GROUP, $n)"),
            ("short part", "if $n > $part and $part >= STEP:", "if $n > $part:"),
            ("held count", "$part -= $w.count", "pass"),
            ("aligned lines", "$p and <uintptr_t>$y % LINE_BYTES == 0", "$p"),
        ],
        "mask_init": [
            ("NaN", "not 0 <= $p <= 1", "($p < 0 or $p > 1)"),
            ("threshold", "($p * 18446744073709551616.0)", "(<float>$p * 18446744073709551616.0)"),
            ("scale", "1 / (1 - $p)", "1 / (1 - <float>$p)"),
        ],
        "itemsize_of": [
            ("bfloat16", "$d in (CDROPOUT_FLOAT16, CDROPOUT_BFLOAT16)", "$d == CDROPOUT_FLOAT16"),
        ],
        "apply": [
            ("p = 1", "if $m.scale == 0:", "if False:"),
            ("null", "any_null($*e)", "False"),
        ],
        "bits": [
            ("last byte", "($count + 7) // 8", "$count // 8"),
        ],
        "bools": [
            ("start", "$a += $part", "pass", 2),
            ("end", "$end, $part - $whole", "$end, 8"),
        ],
        "draw_or_clear_group": [
            ("p = 1", "if $m.scale == 0:", "if False:"),
        ],
        "add_rows": [
            ("bias", "$bias + $done", "$bias"),
            ("group", "open_stream(&$s, $m, $start - $first)", "open_stream(&$s, $m, $start)"),
        ],
        "sum_rows": [
            ("sums", "add_to($sums + $column, $gx, $part)", "add_to($sums, $gx, $part)"),
        ],
    },
    "_core/dispatch.pyx": {
        "choose": [
            ("widest", "return $usable[-1]", "return $usable[0]"),
        ],
        "obstacle": [
            ("not built", "if $w not in $s:", "if False:", 1),
            ("not runnable", "if $w not in $s:", "if False:", 2),
        ],
    },
    "_core/dtypes.pyx": {
        "by_array": [
            ("names", "$t[$i].name.decode() == $n", "$t[$i].name.decode() != $n"),
        ],
        "by_dlpack": [
            ("kind", "$t[$i].dlpack == $k and", "True and"),
            ("bits", "8 * $t[$i].itemsize == $b", "8 * $t[$i].itemsize >= $b"),
        ],
    },
    "_core/arguments.pyx": {
        "as_number": [
            ("bool", "isinstance($p, bool) or", "False or"),
        ],
        "as_index": [
            ("bool", "isinstance($v, (bool, np.bool_))", "isinstance($v, np.bool_)"),
        ],
        "as_seed": [
            ("highest", "< 1 << 64", "<= 1 << 64"),
        ],
        "as_count": [
            ("highest", "0 <= $v < 1 << 64", "0 <= $v < 1 << 63"),
        ],
    },
    "_core/numpy_arrays.pyx": {
        "is_plain_array": [
            ("subclasses", "type($x) in (np.memmap, np.matrix, np.recarray)", "isinstance($x, cnp.ndarray)"),
        ],
        "refuse_subclass": [
            ("masked arrays", "isinstance($a, np.ma.MaskedArray)", "False"),
        ],
        "as_array": [
            ("scalars", "$a.flags.writeable = False", "pass"),
            ("type", "if by_array($a) == NULL:", "if False:"),
            ("byte order", "if not cnp.PyArray_ISNOTSWAPPED($a):", "if False:"),
        ],
        "check_writable": [
            ("read-only", "if not cnp.PyArray_ISWRITEABLE($a):", "if False:"),
            ("overlap", "if overlaps_itself($*e):", "if False:"),
        ],
        "same_memory": [
            ("data", "cnp.PyArray_DATA($a) != cnp.PyArray_DATA($b)", "False"),
            ("axes of one", "and cnp.PyArray_DIM($a, $i) > 1", "and True"),
        ],
        "partly_overlap": [
            ("identical", "$f != $s and", "True and"),
            ("adjacent before", "$f < $s + cnp.PyArray_NBYTES($b)", "$f <= $s + cnp.PyArray_NBYTES($b)", 1),
            ("adjacent after", "$f < $s + cnp.PyArray_NBYTES($b)", "$f <= $s + cnp.PyArray_NBYTES($b)", 2),
            ("same strides", "if same_memory($a, $b):", "if False:"),
            ("too hard", "return True", "return False"),
        ],
        "check_out": [
            ("shape", "if not cnp.PyArray_SAMESHAPE($x, $o):", "if False:"),
            ("type", "cnp.PyArray_TYPE($o) != cnp.PyArray_TYPE($x) or", "False or"),
            ("byte order", "or not cnp.PyArray_ISNOTSWAPPED($o)", "or False"),
            ("writable", 'check_writable($o, "out")', "pass"),
            ("overlap", "if partly_overlap($x, $o):", "if False:"),
        ],
        "destination": [
            ("inplace and out", "if $o is not None:", "if False:"),
            ("type of out", "if not is_plain_array($o):", "if False:"),
            ("x as out", 'check_writable($x, "out")', "pass"),
            ("memory order", "cnp.NPY_KEEPORDER", "cnp.NPY_CORDER"),
        ],
        "from_exporter": [
            ("other errors", "if not $w and not isinstance($e, (BufferError, RuntimeError)):", "if False:"),
            ("wrappers", 'hasattr(type($x), "__dlpack__")', 'hasattr($x, "__dlpack__")'),
        ],
        "as_any_array": [
            ("exporters", "$x if isinstance($x, cnp.ndarray) else $a", "$x"),
        ],
    },
    "_core/mask.pyx": {
        "c_strides": [
            ("order", "tuple(reversed($s))", "tuple($s)"),
        ],
        "normal_strides": [
            ("empty", "list($a) == $b or 0 in $s", "list($a) == $b"),
        ],
        "axes_to_strides": [
            ("range", "if not -$n <= $a < $n:", "if False:"),
            ("twice", "if $s[$a] is not None:", "if False:"),
            ("shared axes", "$s = $s * $l", "$s = $s"),
        ],
        "Mask.__init__": [
            ("strides", "if len($a) != len($b):", "if False:"),
        ],
        "Mask.set_positions": [
            ("lowest", "$low < 0 or", "False or"),
            ("highest", "$high >= 1 << 64", "$high > 1 << 64"),
            ("reach", "max(0, ($l - 1) * $s)", "max(0, $l * $s)"),
            ("empty", "0 if 0 in $s else $t", "$t"),
        ],
        "Mask.__bool__": [
            ("true", "return True", "return False"),
        ],
        "Mask.__getitem__": [
            ("step", "$s * $p.step", "$s"),
        ],
        "Mask.__array__": [
            ("copy", "if $c is False:", "if False:"),
        ],
        "Mask.__mul__": [
            ("refused", "raise TypeError($*e)", "return NotImplemented"),
        ],
        "Mask.__array_ufunc__": [
            ("refused", "raise TypeError($*e)", "return NotImplemented"),
        ],
        "alpha_terms": [
            ("offset", "= -$a * $p * SATURATION", "= $a * $p * SATURATION"),
            ("saturation", "$a * SATURATION + $b", "$a * SATURATION"),
        ],
        "Mask.bits": [
            ("order", 'bitorder="little"', 'bitorder="big"'),
        ],
        "Mask.apply": [
            ("shape", "check_shape($*e)", "pass"),
        ],
        "expand_index": [
            ("ellipses", "if len($d) > 1:", "if False:"),
        ],
        "as_position": [
            ("bound", "-$l <= $p < $l", "-$l <= $p <= $l"),
        ],
        "new_mask": [
            ("strides", "$m.strides_ = $s", "pass"),
        ],
    },
    "_core/generator.pyx": {
        "generator_for": [
            ("changed arrays", "[layout_of($a) for $a in $s] != $b", "False"),
        ],
        "Generator.reseed": [
            ("forks", "$f if $s is None else SEEDED", "SEEDED"),
        ],
        "Generator.next_id": [
            ("last call", "if $c == LAST_CALL:", "if False:"),
        ],
        "Generator.undo_next_id": [
            ("seed", "$a == $m.seed and $c == $m.call + 1", "$c == $m.call + 1"),
        ],
        "Generator.restore_state": [
            ("forks", "$s.forks_at_seeding = $b", "pass"),
        ],
    },
    "_core/dropout.pyx": {
        "dropout": [
            ("evaluation", "$m is None or not as_flag($*e)", "$m is None"),
        ],
        "draw_and_apply": [
            ("undo", "$g.undo_next_id($n)", "pass"),
        ],
        "apply_any_mask": [
            ("overlap", "if np.may_share_memory($t, $g):", "if False:"),
        ],
        "apply_scale": [
            ("dropped", "np.copyto($y, 0, where=$d)", "pass"),
        ],
        "apply_given_mask": [
            ("p of the mask", "None if isinstance($m, Mask) and $q == 0.5 else $q", "$q"),
        ],
        "dropout_features": [
            ("axes", "check_mask($*e)", "pass"),
        ],
    },
    "_core/executor.pyx": {
        "threads_from_environment": [
            ("number", "not $t.isdecimal() or", "False or"),
        ],
        "submit": [
            ("maximum", "min(thread_limit, $m, $p)", "min($m, $p)"),
        ],
        "finish": [
            ("busy", "if $p.busy:", "if False:"),
        ],
        "run_chunks": [
            ("fork", "if $p != $s:", "if False:"),
        ],
        "check_signals": [
            ("handlers", "PyErr_CheckSignals()", "pass"),
        ],
    },
    "_core/engine.pyx": {
        "merge_contiguous": [
            ("x", "or $a.x != $a.y", "or False"),
            ("y", "or $a.y != $s * $i", "or False"),
            ("mask", "$a.mask != $s or", "False or"),
        ],
        "has_row_kernel": [
            ("bools", "or $b != NULL", "or False"),
            ("shift", "or $s.shifts", "or False"),
            ("x", "$a.x == $i and", "True and"),
        ],
        "run_row": [
            ("start", "$v.start + $f", "$v.start"),
            ("place of bits", "$y + $f // 8", "$y + $f"),
        ],
    },
    "_core/bias_dropout_add.pyx": {
        "bias_dropout_add": [
            ("overlap", "np.may_share_memory($o, $b) or", "False or"),
        ],
        "run_tile": [
            ("columns", "min($a - $b, columns_per_tile($m))", "columns_per_tile($m)"),
        ],
        "run_rows": [
            ("sums", "+ $tile * $m.columns + $c", "+ $c"),
        ],
        "run_matrix": [
            ("fixed order", "$m.sums[$c] += $m.sums[$t * $m.columns + $c]", "pass"),
        ],
    },
    "torch/_tensors.pyx": {
        "read_tensor": [
            ("negative", "not $x.is_neg()", "True"),
            ("subclasses", "if type($x) is not Tensor and type($x) is not Parameter:", "if False:"),
        ],
        "runs_eagerly": [
            ("modes", "and not active_modes()", "and True"),
        ],
        "is_new": [
            ("shape", "if $v.shape[$i] != $x.shape[$i]:", "if False:"),
            ("overlap", "not elements_overlap($*e)", "True"),
        ],
        "apply_mask": [
            ("signals", "$m.undo_draw()", "pass"),
            ("copied back", "$y.copy_($c)", "pass"),
        ],
        "float32_copy": [
            ("half types", "if not $m.shifts or $*e:", "if True:"),
        ],
        "apply_mask_to_gradient": [
            ("forward mode", "$f >= 0 or", "False or"),
            ("second derivative", "($g.requires_grad and is_grad_enabled())", "False"),
        ],
    },
    "torch/_draw.pyx": {
        "check_source": [
            ("backward pass", "if not any([$g is $o for $o in $r.generators]):", "if False:"),
            ("restored", "any([$g is $o for $o in $r.generators])", "False"),
            ("graphs", "if isinstance($g, Generator) and ($*e):", "if False:"),
        ],
        "restore": [
            ("drawn since", "$n == $a if", "True if"),
            ("state", "set_state($g, $b)", "pass"),
        ],
        "set_state": [("forks", "(<Generator>$g).forks_at_seeding)", "-1)")],
        "LazyMask.draw": [
            ("p = 1", "if $p != 1:", "if True:"),
        ],
        "LazyMask.undo_draw": [
            ("PyTorch's", "restore($*e)", "pass"),
        ],
        "derivative_of": [
            ("alpha", '"alpha_gradient" if $f == "alpha" else $f', "$f"),
        ],
        "check_generator": [("types", "if not ($*e):", "if False:")],
        "LazyMask.copy": [
            ("start", "self.start, self.strides", "0, self.strides"),
        ],
        "LazyMask.with_batch_axis": [
            ("broadcast axes", "$a + 1 for $a", "$a for $a"),
        ],
    },
    "torch/_openmp.pyx": {
        "run_thread": [
            ("team", "if $m < $t:", "if True:"),
            ("first", "$a.first + $i", "$i"),
        ],
        "run_in_openmp": [
            ("maximum", "min(exchange_thread_limit(0), $m, $c)", "min($m, $c)"),
        ],
    },
    "torch/_attention.pyx": {
        "add_product": [
            ("result", "== 0", ">= 0"),
        ],
        "offset_of": [
            ("row", "* $row", "* 0", 2),
            ("leading axes", "$offset += ", "$offset = "),
        ],
        "draw_row": [
            ("part", "$start += <uint64_t>$stride * $part", "$start += $part"),
        ],
        "draw_rows": [
            ("first row", "<uint64_t>$t.row_stride * $first", "0"),
            ("stride", "if $t.stride == 1:", "if True:"),
        ],
        "run_rows": [
            ("backward keeps the bits", "if $t.operation != BACKWARD:", "if False:"),
        ],
        "hide": [
            ("column stride", "<int64_t>$i * $m.column_stride", "<int64_t>$i"),
        ],
        "add_gradient": [
            ("sum", "+= $g[$i]", "= $g[$i]"),
        ],
        "open_tile": [
            ("visible columns", "$first + 1 if", "$first + 2 if"),
            ("columns of a causal tile", "min($first + $rows, $k)", "min($rows, $k)"),
            ("sums", "$head * $r + $first", "$head * $r"),
            ("gap", "$gap <= MAX_GAP", "True"),
        ],
        "backward_head": [
            ("first tile", "0 if $i == 0 else 1", "0"),
        ],
        "backward_tile": [
            ("scale of gquery", "&$other, 0, $a.scale", "&$other, 0, 1"),
        ],
        "run": [
            ("failure", "if $a.failed:", "if False:"),
        ],
    },
    "torch/attention.py": {
        "Attention.backward": [
            ("unseen keys", "$s.is_causal and", "False and"),
            ("type of the sums", "torch.float64 if $summed else", "torch.float32 if $summed else"),
        ],
    },
    "jax/_xla.pyx": {
        "multiply": [("large", "$p[0] != 0 and $f > LARGEST // $p[0]", "False")],
        "is_valid": [
            ("memory", "$b.data != NULL or $n == 0", "True"),
        ],
        "check_frame": [
            ("operands", "$f.operands.size != 4 or", "False or"),
        ],
        "check_types": [
            ("result", "if $a.dtype != $b.dtype or", "if"),
            ("one p", "1 if $r == $b else $m", "1"),
        ],
        "check_window": [
            ("shared", "0 if $l == 1 else <int64_t>$s", "<int64_t>$s"),
            ("reach", "$a > $l or $o > $l - $a", "$a > $l"),
        ],
    },
    "functional.py": {
        "dropout1d": [("batch", "$n == 3", "True")],
        "dropout3d": [("batch", "$n == 5", "True")],
        "drop_path": [
            ("axes", "$x, 1, $p", "$x, 0, $p"),
            ("scale", "None if $s else 1.0", "None"),
            ("scale of a mask", "$m is not None and not $s", "False"),
        ],
        "_alpha_dropout": [
            ("evaluation", "not $t or $p == 1", "$p == 1"),
            ("changed arrays", "generator_for($r, [$s, $t])", "generator_for($r, [])"),
            ("p = 1", "not $t or $p == 1", "not $t"),
            ("p of the mask", "$p = $m.p", "pass"),
        ],
        "feature_alpha_dropout": [
            ("axes", "$x, 2, $p", "$x, 1, $p"),
        ],
        "as_copies": [
            ("none", "$n < 0", "$n < 1"),
        ],
        "_check_channels": [
            ("few axes", "if $n < $c:", "if False:"),
        ],
    },
    "modules.py": {
        "Dropout.__init__": [
            ("p", "check_probability($p)", "pass"),
            ("rng", "own_generator($r)", "None"),
        ],
        "Dropout.forward": [
            ("training", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, True, $s.inplace"),
            ("inplace", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, $s.training, False"),
        ],
        "Dropout.backward": [("mask", "$s.mask if $m is None else $m", "$s.mask")],
        "Dropout.train": [("mode", "bool($m)", "True")],
        "_Variant.forward": [("training", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, True, $s.inplace")],
        "DropPath._function": [("scale", "scale_by_keep=$s.scale_by_keep", "scale_by_keep=True")],
        "always_on": [
            ("on", "$m.train(True)", "pass"),
            ("back", "$m.train($b)", "$m.train(False)", 2),
        ],
    },
    "torch/functional.py": {
        "dropout1d": [("axis", "$x.dim() - 1", "$x.dim() - 2")],
        "dropout2d": [("axes", "(2, 3)", "(3,)")],
        "dropout3d": [("axes", "range($n - 3, $n)", "range($n - 2, $n)")],
        "_call_torch": [("generator", "if $t and $g is not None:", "if False:")],
        "feature_alpha_dropout": [("axes", "range(2, $x.dim())", "range(1, $x.dim())")],
        "drop_path": [
            ("scale", '"scale" if $s else "keep"', '"scale"'),
            ("scale elsewhere", "$f if $s or $p == 1 else $f * (1 - $p)", "$f"),
            ("inplace elsewhere", "$x.mul_($f) if $i else $x * $f", "$x * $f"),
            ("symbolic", "has_proxy($x)", "False"),
        ],
        "mc_dropout": [
            ("copies", "$y.clone() if $y is $c else $y", "$y"),
        ],
        "bias_dropout_add": [
            ("type of residual", "and $r.dtype == $t.dtype", "and True"),
            ("shape of residual", "and $r.shape == $t.shape", "and True"),
        ],
    },
    "torch/autograd.py": {
        "restore_on_error": [("restored", "restore($g, $b, $a)", "pass")],
        "EagerDropout.backward": [
            ("gradient", "TransformableDropout.apply($g, None, $c.mask.derivative())", "$g"),
        ],
        "TransformableDropout.forward": [
            ("NaN", "torch.where($s != 0, $x.to($w) * $s, 0)", "($x.to($w) * $s)"),
        ],
        "_check_in_place": [
            ("overlap", "if torch._debug_has_internal_overlap($x):", "if False:"),
            ("leaves", "($x.is_leaf or $x._is_view())", "$x._is_view()"),
        ],
        "apply_eagerly": [
            ("version", "torch.autograd.graph.increment_version($x)", "pass"),
            ("forward mode", "$f >= 0", "False"),
        ],
        "apply_under_transforms": [
            ("inplace", "$x.copy_($y) if $m.inplace else $y", "$y"),
            ("known", "if $m.drawn:", "if False:"),
        ],
        "implementation_for": [
            ("tracing", "if torch._C._get_tracing_state() is not None:", "if False:"),
            ("subclasses", "type($x) is not Tensor or not _has_supported_type($x)", "not _has_supported_type($x)"),
        ],
        "_has_supported_type": [
            ("device", '$x.device.type == "cpu" and', "True and"),
        ],
        "apply_given_mask": [
            ("identity", '$m.p == 0 and ($m.scale == 1 or $f == "alpha")', "$m.p == 0"),
        ],
    },
    "torch/operators.py": {
        "move_batch_axis_first": [
            ("first seed", "$s.select($d[1], 0)", "$s.select($d[1], -1)"),
            ("axis of x", "$x.movedim($d[0], 0)", "$x"),
        ],
        "_": [
            ("large seeds", "& UINT64_MAX", "& (UINT64_MAX >> 1)", 1),
        ],
        "saved_seed": [("copy", "$s.clone()", "torch.zeros_like($s)")],
        "OperatorDerivatives.jvp": [
            ("tangent", "$c.operator($g, *$c.saved_tensors, *$c.constants)", "$g"),
        ],
    },
    "torch/checkpoint.py": {
        "checkpoint_context": [("types", "if not isinstance($g, (torch.Generator, Generator)):", "if False:")],
        "_FirstRun.__enter__": [("inner", "$s.inner.__enter__()", "pass")],
        "_SecondRun.__enter__": [
            ("outer", "(*$s.outer, *$g)", "$g"),
        ],
        "_SecondRun.__exit__": [
            ("states", "_restore($*e)", "pass"),
            ("outer", "$r.generators = $s.outer", "pass"),
        ],
    },
    "torch/fx.py": {
        "record_call": [
            ("generator", "if $g is not None:", "if False:", 1),
        ],
        "is_traced_leaf": [
            ("subclasses", "if type($m) not in LEAF_MODULES:", "if False:"),
            ("tracers", "and isinstance($t, Tracer)", "and True"),
            ("root", "$m is not $r and", "True and"),
        ],
        "record_module": [
            ("global hooks", "or $n._global_forward_hooks or $n._global_forward_pre_hooks", "or False"),
        ],
    },
    "torch/modules.py": {
        "_check_arguments": [
            ("p", "if not 0 <= $p <= 1:", "if False:"),
        ],
        "Dropout.forward": [("generator", "generator=$s.generator", "generator=None")],
        "Dropout3d.forward": [("training", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, True, $s.inplace", 2)],
        "convert": [("no dropout", "(nn.MultiheadAttention, nn.RNNBase)) and $m.dropout", "(nn.MultiheadAttention, nn.RNNBase))")],
        "revert": [("generator", "elif $m.generator is not None:", "elif False:")],
    },
    "torch/overrides.py": {
        "_Switch.update": [
            ("depth", "or $s.depth > $d", "or False"),
            ("state of a checkpoint", "$a or $s.enabled > $e", "$s.enabled > $e"),
        ],
        "_Acceleration.__call__": [
            ("generators", "if any($*e):", "if False:"),
            ("results", "if isinstance($r, SUSPENDABLE_RESULTS):", "if False:"),
        ],
        "DISPATCH_KEYS": [("inference", '"AutogradCPU", "CPU"', '"AutogradCPU",')],
        "_register_kernels": [("traced", "$o.py_kernels[COMPOSITE] = $t", "pass")],
        "_implementation_for": [
            ("evaluation", "$t is not False and", "True and"),
            ("modes", "$w if (is_supported($x) or is_traced($x)) and not is_empty($x) else None", "None"),
        ],
        "_replaced_dropout": [
            ("few axes", "or $x.dim() < ($f or 0)", "or False"),
            ("form", "None, $b, $f)", 'None, $b, "scale")'),
        ],
    },
    "jax/functional.py": {
        "_key_data": [("shape", "if $w.shape not in $*e:", "if False:")],
        "_evaluate_abstractly": [("varying", "if not _varying($k) <= _varying($x):", "if False:")],
        "_jvp_of_p": [("refused", "raise NotImplementedError($*e)", "return _[0]")],
        "_batch": [
            ("p of each", "($p, $a) if $k is None else ($l, $b)", "($l, $b)"),
        ],
        "_window": [("broadcast axes", "$a in $b for", "0 for")],
        "_lower": [("inplace", "{1: 0} if $i else None", "None")],
    },
    "flax/functional.py": {
        "result_without_mask": [
            ("traced", "isinstance($r, jax.core.Tracer) or", "False or"),
        ],
    },
    "flax/linen.py": {
        "Dropout.__call__": [
            ("own key", "$s.make_rng($c) if $r is None else $r", "$s.make_rng($c)"),
        ],
    },
    "flax/nnx.py": {
        "Dropout.__call__": [
            ("undecided", "if $d is None:", "if False:"),
            ("axes", "tuple($s.broadcast_dims)", "()"),
        ],
    },
    "dask.py": {
        "dropout": [
            ("seed and rng", "if $s is not None and $r is not None:", "if False:"),
        ],
        "dropout_backward": [
            ("shape", "if $m.shape != $s:", "if False:"),
        ],
        "_apply": [("identity", "$m.p == 0 and $m.scale == 1", "False")],
        "_known_shape": [
            ("unknown size", "if any($*e):", "if False:"),
        ],
    },
    "keras.py": {
        "_dropout_jax": [("state", "[1::2]", "[::2]")],
        "_Layer.call": [
            ("evaluation", "$t and $r > 0", "$r > 0"),
        ],
        "_SpatialLayer._broadcast_axes": [
            ("format", '"channels_first"', '"channels_last"'),
        ],
        "Dropout._broadcast_axes": [
            ("shape", "$d in (None, 1, $l)", "True"),
        ],
    },
    "thinc.py": {
        "CdropoutOps.get_dropout_mask": [
            ("all dropped", "$d >= 1", "$d > 1"),
            ("seed", "np.random.randint(1 << 64, dtype=np.uint64)", "0"),
        ],
        "use_cdropout": [
            ("ops", "set_current_ops($o)", "pass"),
            ("models", "$n.ops = $o", "pass"),
        ],
    },
}

# the mutants that no test can kill, and the reasons
EXPLAINED = {
    "torch/checkpoint.py:_SecondRun.__enter__:outer":
        "an inner replay draws from its own generators only; the first run raises an error for all others",
    "_core/select.pxd:bits_at:last-byte":
        "the next byte does not change the result, and is in or after a local buffer",
}
