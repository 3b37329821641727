"""The mutants, by file and function: (name, pattern, replacement) or (name, pattern, replacement, number).

Patterns are those of anchors.py. A pattern matches once in its function, or `number` (from 1) says
which match is meant. A name that ends in @ and an instruction set is a mutant of the kernels for
that set; the others are mutants of those for avx512. Each mutant has to change a result or an
error: what only costs time is left out, and so is what no test can bring about.
"""
# ruff: noqa: E501
# fmt: off

MUTANTS = {
    "core/stream.pxd": {
        "mix": [
            ("shift", "$z >> 30", "$z >> 29"),
            ("last shift", "$z >> 31", "$z >> 32"),
            ("factor", "* MIX_2", "* MIX_1"),
        ],
        "draw": [
            ("rotation of the sum", "($r << 17) | ($r >> 47)", "($r << 16) | ($r >> 48)"),
            ("addend", ">> 47)) + $a", ">> 47))"),
            ("xor", "$b ^= $a", "pass"),
            ("shift", "$b << 21", "$b << 20"),
            ("rotation", "($b << 28) | ($b >> 36)", "($b >> 28) | ($b << 36)"),
        ],
        "mix_lanes": [
            ("shift", "$z[0] >> 27", "$z[0] >> 26"),
            ("last xor", "$z[0] ^= $z[0] >> 31", "pass"),
        ],
        "seed_block": [
            ("first lane", "LANES * $block + 1", "LANES * $block"),
            ("order of lanes@avx2", "STEPS + $v * (LANES // WORDS)", "STEPS + (WORDS - 1 - $v) * (LANES // WORDS)"),
            ("second seed", "$s[$v] + $c", "$s[$v]"),
        ],
        "open_stream": [
            ("key", "mix($seed + GAMMA)", "mix($seed)"),
            ("call", "$key ^ $call * CALL", "$key ^ $call"),
            ("increment of 0", "if $c == 0:", "if $c == 2:"),
            ("tie", "mix($s.K + $s.c)", "mix($s.K)"),
            ("rest of p", "$t << ROUNDS", "$t << (ROUNDS - 1)"),
            ("short p", "64 - lowest_bit($t)", "63 - lowest_bit($t)"),
            ("block", "$group // BLOCK", "$group // GROUP"),
            ("skipped rounds", "* <uint64_t>$s.rounds", "* <uint64_t>ROUNDS"),
        ],
        "ties_dropped": [
            ("element", "$first + $i + 1", "$first + $i"),
            ("bit", "<uint64_t>1 << $i", "<uint64_t>1 << (63 - $i)"),
        ],
        "drop_ties": [
            ("lane", "64 * <uint64_t>$lane", "32 * <uint64_t>$lane"),
            ("bits", "& ~$left[$lane]", "| $left[$lane]"),
        ],
        "begin_part": [
            ("part@baseline", "$s.s1[$first + $v]", "$s.s1[$v]"),
        ],
        "draw_round": [
            ("dropped", "|= $u[$v] & ~$r", "|= $u[$v] & $r"),
            ("undecided", "$u[$v] &= ~$r", "$u[$v] &= $r"),
            ("next bit", "<<= 1", "<<= 2"),
        ],
        "end_part": [
            ("ties of all vectors@avx2", "$left |= $u[$v]", "$left = $u[$v]"),
            ("state", "$s.s1[$f + $v] = $r.s1[$v]", "pass"),
            ("place@baseline", "GROUP_BYTES // WORDS * ($f + $v)", "GROUP_BYTES // WORDS * $v"),
            ("ties", "if $s.rest and any_bit($left):", "if False:"),
        ],
        "next_group": [
            ("seeding", "$g % BLOCK == 0", "$g % (2 * BLOCK) == 0"),
        ],
        "draw_group": [
            ("rounds", "range($s.rounds)", "range($s.rounds - 1)"),
        ],
    },
    "core/bits.pxd": {
        "write_bits": [
            ("bits above", "$word &= $*e", "pass"),
            ("held", "$held |= $word << $count", "$held = $word << $count"),
            ("shift", "63 - $count", "62 - $count"),
            ("count", "+= $count - 64", "+= $count - 63"),
        ],
        "write_group": [
            ("bytes", "memcpy($to, $bits, 64)", "memcpy($to, $bits, 56)"),
            ("held", "$held | $word << $count", "$word << $count"),
            ("shift", "64 - $count", "63 - $count"),
        ],
        "spread_bits": [
            ("order", "0x8040201008040201", "0x0102040810204080"),
            ("carry", "0x7F7F7F7F7F7F7F7F", "0x3F3F3F3F3F3F3F3F"),
        ],
        "pack_bools": [
            ("highest bit", "($lanes | ($lanes &", "(($lanes &"),
            ("order", "0x0102040810204080", "0x8040201008040201"),
        ],
        "bits64_at": [("last byte", "<uint64_t>$b[8] << (64 - $s)", "0")],
        "reversed_bits": [("halves", "$b >> 32 | $b << 32", "$b")],
        "exchange": [("first", "$a[0] ^= $t << $s", "pass")],
        "transpose": [("rows of vectors", "$m[8 * $j + $i] = $r[8 * $i + $j]", "$m[8 * $i + $j] = $r[8 * $i + $j]")],
        "append_bits": [("next", "$first + $done", "$first")],
        "row_at": [
            ("ascending", "if not $d:", "if True:"),
            ("first bits", "63 - $f", "62 - $f"),
            ("other bits", "$f - 63", "$f - 62"),
        ],
        "append_equal": [("all bits", "0 - <uint64_t>$b", "<uint64_t>$b")],
        "append_spaced": [
            ("stride", "$first += <uint64_t>$s", "$first += 1"),
            ("rest", "if $n % 64:", "if False:"),
        ],
        "append_rows": [("carry", "$first -= <uint64_t>$a[$i].stride * <uint64_t>$a[$i].length", "pass")],
        "put_bits": [("last byte", "if $s + $n > 64:", "if False:")],
        "interleave": [
            ("row", "$v << $i", "$v"),
            ("stride", "$first + $j + <uint64_t>($i * $r.stride)", "$first + $j + <uint64_t>$i"),
            ("next", "$out += VECTOR_WORDS * $b * $n // 8", "pass"),
        ],
        "transpose_pair": [
            ("held", "$w.held = load_bits64($w.to) & $*e", "$w.held = 0"),
            ("width", "$w // 2 >= $n", "$w >= $n"),
            ("last bits", "if $w.count:", "if False:"),
        ],
        "transpose_axes": [
            ("whole words", "$n == 64 and $p % 64 == 0 and $q % 64 == 0", "$n == 64"),
            ("next row", "$p += $r.length", "pass"),
            ("carry", "$h -= <uint64_t>$a[$i].stride * <uint64_t>$a[$i].length", "pass"),
        ],
        "reorder_bits": [
            ("outer axes", "$s += <uint64_t>$a[$i].stride * ($k % $a[$i].length)", "pass"),
            ("zeroed", "memset($out, 0, $*n)", "pass"),
        ],
    },
    "core/elements.pxd": {
        "step": [
            ("scale of doubles", "load_f64(<f64*>$x + $i) * $f", "load_f64(<f64*>$x + $i)"),
            ("bits of doubles", "* $f, $keep, $i", "* $f, $keep, 0", 1),
            ("bits of floats", "* $f, $keep, $i", "* $f, $keep, 0", 2),
        ],
        "bits_at": [
            ("last byte", "$b[($s + WORD - 1) // 8]", "$b[4]"),
            ("shift", "<< 32) >> $s", "<< 32) >> ($s & 6)"),
        ],
        "few_bits_at": [
            ("bytes", "+ 7) // 8", "+ 8) // 8"),
            ("byte", "<< 8 * $i", "<< 4 * $i"),
            ("shift", "$bits >> $first % 8", "$bits"),
        ],
        "step_few": [
            ("read", "memcpy($a, $b, $n * sizeof(element))", "memcpy($a, $b, WORD * sizeof(element))", 1),
            ("written", "memcpy($a, $b, $n * sizeof(element))", "memcpy($a, $b, WORD * sizeof(element))", 2),
        ],
        "up_to_line": [
            ("elements", "% LINE // sizeof(element)", "% LINE"),
        ],
        "mask_and_scale": [
            ("bits after the line", "$first += $head", "pass", 3),
            ("whole bytes", "$first % 8 == 0", "$first % 4 == 0"),
            ("bits", "$keep + $first // 8 + 4 * $i", "$keep + $first // 8 + 2 * $i"),
            ("shifted bits", "bits_at($keep, $first + WORD * $i)", "bits_at($keep, $first + $i)"),
            ("bits of the tail", "$first += $n // WORD * WORD", "pass", 3),
            ("tail", "if $n % WORD:", "if $n % WORD > 1:"),
        ],
        "mask_and_scale_large": [
            ("bits", "$first + $done, GROUP", "$first, GROUP"),
            ("bits of the rest", "$first + $done, $n - $done, $scale", "$first, $n - $done, $scale"),
            ("aligned lines", "or <uintptr_t>($y + $done) % LINE", "or False"),
        ],
        "step_bias": [
            ("bias of doubles", "load_f64(<f64*>$x + $i) + load_f64(<f64*>$b + $i)", "load_f64(<f64*>$x + $i)"),
            ("residual of floats", "load_f32(<f32*>$r + $i) + kept_f32", "kept_f32"),
            ("bits of doubles", "* $f, $keep, $i", "* $f, $keep, 0", 1),
            ("bits of floats", "* $f, $keep, $i", "* $f, $keep, 0", 2),
        ],
        "add_masked": [
            ("bias", "$a += WORD", "pass", 2),
            ("bits", "$a += WORD", "pass", 5),
            ("bits of the tail", "few_bits_at($keep, $first, $rest)", "0"),
            ("bias of the tail", "memcpy($buffer[1], $*e)", "pass"),
        ],
        "add_to": [
            ("sum", "$total += $value", "$total = $value"),
        ],
    },
    "core/simd.h": {
        "cd_kept_f32": [
            ("bits", "cd_load_bits32($k) >> 16 * $i", "cd_load_bits32($k)"),
            ("bits@avx2", "$i * (CD_BYTES / 4)", "$i * (CD_BYTES / 8)"),
        ],
        "cd_kept_f64": [
            ("bits", "$k[$i], $v", "$k[0], $v"),
            ("bits@baseline", "$i * (CD_BYTES / 8)", "$i * (CD_BYTES / 4)"),
        ],
        "CD_OWN_64": [
            ("lane@avx2", "{1, 1, 2, 2, 4, 4, 8, 8}", "{1, 1, 2, 2, 4, 4, 8, 4}"),
        ],
        "CD_OWN_32": [
            ("lane@baseline", "{1, 2, 4, 8}", "{1, 2, 4, 4}"),
        ],
        "cd_fill_rows": [
            ("order@avx2", "$bits >> $lane & 1", "$bits >> (7 - $lane) & 1"),
        ],
        "cd_kept_16": [
            ("upper half@avx2", "$rows[$k[2 * $i + 1]]", "$rows[$k[2 * $i]]"),
            ("bits@baseline", "$rows[$k[$i]]", "$rows[$k[0]]"),
        ],
        "cd_any": [
            ("first lane", "_mm512_test_epi64_mask((__m512i)$v, (__m512i)$v) != 0", "_mm512_test_epi64_mask((__m512i)$v, (__m512i)$v) > 1"),
            ("all lanes@avx2", "!_mm256_testz_si256($*e)", "0"),
            ("all lanes@baseline", "!= 0xFFFF", "== 0"),
        ],
        "cd_round_bf16": [
            ("tie", "0x15", "0x55"),
            ("tie@baseline", "0x7FFF + ($u >> 16 & 1)", "0x8000"),
        ],
        "cd_step_bf16": [
            ("order", "{1, 33, 3, 35,", "{33, 1, 3, 35,"),
            ("lower bits", "$v & 0xFFFF0000", "$v", 1),
            ("tie@avx2", "~$u & 1", "$u & 1"),
            ("halves@avx2", "$high, 0xAA", "$high, 0x55"),
            ("low half@baseline", "$low >> 16 | ($high & 0xFFFF0000)", "$low | ($high & 0xFFFF0000)"),
        ],
        "cd_step_f16": [
            ("rounding", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO", 1),
            ("rounding@avx2", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO", 2),
            ("bits", "cd_load_bits32($k) >> 16 * $i", "cd_load_bits32($k)"),
            ("bits@avx2", "$rows[$k[$i]]", "$rows[$k[0]]"),
            ("sign@baseline", "| ($v & 0x80008000)", "| 0"),
        ],
        "cd_scale_magnitude_f16": [
            ("largest@baseline", "0x1p16f", "0x1p17f"),
            ("subnormals@baseline", "0x1p-14f", "0x1p-15f"),
        ],
        "cd_scale_f16": [
            ("NaN@baseline", "0x7C01", "0x7C00"),
            ("quiet@baseline", "(($v | $q) & $s)", "($v & $s)"),
        ],
        "cd_scale_one_f16": [
            ("subnormals@baseline", "0x1p-12f", "0x1p-13f"),
        ],
        "cd_too_large_f16": [
            ("exponent@baseline", "- 126", "- 127"),
        ],
        "cd_stream": [
            ("end", "$i < $bytes / CD_BYTES", "$i + 1 < $bytes / CD_BYTES"),
        ],
    },
    "core/view.pxd": {
        "distance": [("negative", "<uint64_t>$s if $s >= 0 else 0 - <uint64_t>$s", "<uint64_t>$s")],
        "continues": [
            ("x", "$o.x != $i.x * $n or", "False or"),
            ("y", "or $o.y != $i.y * $n", "or False"),
            ("remainder", "$o.mask % $n == 0 and", "True and"),
            ("stride", "and $o.mask // $n == $i.mask", "and True"),
        ],
        "add_axis": [
            ("x", "$v.x += $n * $a.x", "pass"),
            ("start", "$v.start += <uint64_t>$n * <uint64_t>$a.mask", "pass"),
            ("mask", "$a.mask = <int64_t>(0 - <uint64_t>$a.mask)", "pass"),
        ],
        "join_axes": [("length", "$v.axes[$i].length *= $v.axes[$k].length", "pass")],
        "lay_out": [
            ("run", "($l[$a] - 1) * <uint64_t>$d.stride[$a]", "($l[$a] - 2) * <uint64_t>$d.stride[$a]"),
            ("runs", "= <int64_t>$d.bits", "= <int64_t>$d.run"),
            ("backwards", "$d.stride[$a] = -$d.stride[$a]", "pass"),
        ],
        "fits": [
            ("bits", "return $d.bits <= TILE", "return True"),
        ],
        "take_tile": [
            ("rest", "min($l[$a], $v.axes[$a].length - $f)", "$l[$a]"),
            ("x", "$t.x += <ptrdiff_t>$f * $v.axes[$a].x", "pass"),
            ("start", "$t.start += <uint64_t>$f * <uint64_t>$v.axes[$a].mask", "pass"),
        ],
        "overlaps_itself": [
            ("adjacent", "<size_t>$v.axes[$i].y < $e", "<size_t>$v.axes[$i].y <= $e"),
            ("extent", "($v.axes[$i].length - 1) * <size_t>$v.axes[$i].y", "$v.axes[$i].length * <size_t>$v.axes[$i].y"),
        ],
    },
    "core/tiles.pxd": {
        "joins": [
            ("x", "$o.x == $i.x * <ptrdiff_t>$i.length and", "True and"),
            ("y", "and $o.y == $i.y * <ptrdiff_t>$i.length", "and True"),
        ],
        "next_row": [
            ("x", "$r.x -= <size_t>$a.x * $a.length", "pass"),
            ("y", "$r.y -= <size_t>$a.y * $a.length", "pass"),
            ("mask", "$r.mask -= <uint64_t>$a.mask * $a.length", "pass"),
        ],
        "append_stream": [
            ("p = 1", "if $m.scale == 0:", "if False:"),
            ("group", "$start - $first", "$start"),
            ("whole groups", "$first == 0 and $n >= GROUP", "$n >= GROUP"),
            ("shift", ">> $first % 64", ">> $first % 32"),
        ],
        "append_bools": [("rest", "memcpy($l, $b + $n - $n % 64, $n % 64)", "pass")],
        "append_packed": [
            ("bits of a byte", "8 - $first % 8", "8"),
            ("next", "$first += 64", "$first += 63"),
        ],
        "draw_tile": [
            ("least position", "$p += <uint64_t>($t.axes[$a].length - 1) * <uint64_t>$t.axes[$a].mask", "pass"),
            ("pitch", "if $d.pitch > $d.run:", "if False:"),
            ("carry", "$p -= distance($t.axes[$a].mask) * <uint64_t>$t.axes[$a].length", "pass"),
        ],
        "first_bit": [("backwards", "if $d.stride[$a] < 0:", "if False:")],
        "in_order": [("strides", "and $d.stride[$a] != $s", "and False")],
        "apply_spaced_row": [
            ("bits", "$first + $done, $n, $t.scale", "$first, $n, $t.scale"),
            ("x", "$x += <ptrdiff_t>$n * $r.x", "pass"),
            ("y", "$y += <ptrdiff_t>$n * $r.y", "pass"),
        ],
        "shift_elements": [
            ("bits", "bits64_at($b, $first + $i)", "bits64_at($b, $first)"),
        ],
        "select_shifted": [
            ("dropped", "$s if $k[$i] else $c", "$s"),
            ("shift", "$v[$i] + $s", "$v[$i]"),
        ],
        "apply_rows": [
            ("x", "$r.x == sizeof(element) and", "True and"),
            ("y", "and $r.y == sizeof(element)", "and True"),
            ("bits", "$first += $r.length", "pass"),
        ],
        "apply_tile": [("order", "if not in_order($d, $t):", "if False:")],
    },
    "core/kernels.pyx": {
        "apply_and_draw": [
            ("steps left", "range($done, GROUP // WORD)", "range($done + 1, GROUP // WORD)"),
            ("rounds left@baseline", "range($together, $rounds)", "range($together + 1, $rounds)"),
            ("part@baseline", "begin_part(&$r, $s, $part)", "begin_part(&$r, $s, 0)"),
        ],
        "apply_stream": [
            ("group", "open_stream(&$s, $m, $start - $first)", "open_stream(&$s, $m, $start)"),
            ("first part", "min(GROUP - $first, $n)", "min(GROUP, $n)"),
            ("short part", "if $n > $part and $part >= WORD:", "if $n > $part:"),
            ("held bits", "32 - $count", "31 - $count"),
            ("held count", "$part -= $w.count", "pass"),
            ("aligned lines", "$p and <uintptr_t>$y % LINE == 0", "$p"),
        ],
        "mask_init": [
            ("NaN", "not 0 <= $p <= 1", "($p < 0 or $p > 1)"),
            ("threshold", "ldexp($p, 64)", "ldexp(<float>$p, 64)"),
            ("scale", "1 / (1 - $p)", "1 / (1 - <float>$p)"),
        ],
        "size_of": [
            ("bfloat16", "$d in (CDROPOUT_FLOAT16, CDROPOUT_BFLOAT16)", "$d == CDROPOUT_FLOAT16"),
        ],
        "apply": [
            ("p = 1", "if $m.scale == 0:", "if False:"),
            ("null", "any_null($*e)", "False"),
            ("flags", "not are_known($f) or", "False or"),
        ],
        "bits": [
            ("last byte", "($count + 7) // 8", "$count // 8"),
        ],
        "bools": [
            ("start", "$a += $part", "pass", 2),
            ("end", "$end, $part - $whole", "$end, 8"),
        ],
        "apply_bits": [
            ("null", "any_null($*e)", "False"),
            ("flags", "not are_known($f) or", "False or"),
        ],
        "apply_long_rows": [("start", "$v.start + $r.mask", "$v.start")],
        "apply_typed": [
            ("p = 1", "and $t.scale != 0 and", "and"),
            ("steps in the mask", "and $r.mask == 1", "and True"),
            ("steps in y", "and $r.y == sizeof(floating)", "and True"),
            ("alpha dropout", "and not $t.shifts", "and True"),
        ],
        "apply_source": [
            ("type", "$b == 0 and $d != CDROPOUT_BOOL or", "False or"),
            ("flags", "or not are_known($f) or", "or False or"),
            ("ndim", "or not 0 <= $n <= MAX_DIMS or", "or False or"),
            ("axes", "or $n and $a == NULL", "or False"),
            ("empty", "if $a[$i].length == 0:", "if False:"),
            ("null y", "if $y == NULL or", "if False or"),
            ("null", "$s.mask == NULL and $s.bits == NULL and $s.bools == NULL", "False"),
        ],
        "apply_alpha_strided": [
            ("p = 1", "$s != 0, $c, $d", "True, $c, $d"),
            ("types", "if $d not in $*e:", "if False:"),
        ],
        "draw_unless_none": [
            ("p = 1", "if $m.scale == 0:", "if False:"),
        ],
        "add_rows": [
            ("bias", "$bias + $done", "$bias"),
            ("residual", "$a += $part", "pass", 2),
            ("group", "open_stream(&$s, $m, $start - $first)", "open_stream(&$s, $m, $start)"),
        ],
        "sum_rows": [
            ("sums", "add_to($sums + $done, $gx, $part)", "add_to($sums, $gx, $part)"),
            ("next group", "$first = 0", "$first = 1", 2),
        ],
    },
    "core/dispatch.pyx": {
        "choose": [
            ("widest", "return $usable[-1]", "return $usable[0]"),
            ("not built", "if $w not in $s:", "if False:", 2),
            ("not runnable", "if $w not in $s:", "if False:", 3),
        ],
    },
    "core/arrays.pyx": {
        "takes": [
            ("bfloat16 alone", '$n != $b and $a.dtype.name == "bfloat16"', "$n != $b"),
        ],
        "is_taken": [
            ("subclasses", "type($x) in (np.memmap, np.matrix, np.recarray)", "isinstance($x, cnp.ndarray)"),
            ("matrices", "(np.memmap, np.matrix, np.recarray)", "(np.memmap, np.recarray)"),
        ],
        "refuse_subclass": [
            ("masked arrays", "isinstance($a, np.ma.MaskedArray)", "False"),
        ],
        "as_array": [
            ("scalars", "$a.flags.writeable = False", "pass"),
            ("type", "if not takes($a):", "if False:"),
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
            ("inplace writable", 'check_writable($x, "x")', "pass"),
            ("type of out", "if not is_taken($o):", "if False:"),
            ("x as out", 'check_writable($x, "out")', "pass"),
            ("memory order", "cnp.NPY_KEEPORDER", "cnp.NPY_CORDER"),
        ],
        "code_of": [
            ("double", "if $n == cnp.NPY_DOUBLE:", "if False:"),
            ("half", "if $n == cnp.NPY_FLOAT16 else", "if False else"),
        ],
        "from_exporter": [
            ("other errors", "if not $w and not isinstance($e, (BufferError, RuntimeError)):", "if False:"),
            ("wrappers", 'hasattr(type($x), "__dlpack__")', 'hasattr($x, "__dlpack__")'),
        ],
        "take": [
            ("exporters", "$x if isinstance($x, cnp.ndarray) else $a", "$x"),
        ],
        "fill_axes": [
            ("mask in C order", "$s *= cnp.PyArray_DIM($y, $i)", "pass"),
            ("x", "cnp.PyArray_STRIDE($x, $i) if $x is not None else 0", "0"),
        ],
        "apply_mask": [
            ("strides", "if $s is not None or $h is not None or not plain($x, $y):", "if $h is not None or not plain($x, $y):"),
            ("alpha dropout", "or $h is not None or not plain($x, $y):", "or not plain($x, $y):"),
            ("layout", "or not plain($x, $y):", "or False:"),
        ],
        "apply_bits": [("layout", "if plain($x, $y):", "if True:")],
    },
    "core/masks.pyx": {
        "c_strides": [
            ("order", "tuple(reversed($s))", "tuple($s)"),
        ],
        "normal_strides": [
            ("empty", "list($a) == $b or 0 in $s", "list($a) == $b"),
        ],
        "strides_along": [
            ("range", "if not -$n <= $a < $n:", "if False:"),
            ("twice", "if $a % $n in $s:", "if False:"),
            ("drawn once", "[1 if $i in $s else $l for", "[$l for"),
        ],
        "Mask.__init__": [
            ("negative length", "any($l < 0 for $l in $s)", "False"),
            ("strides", "if len($a) != len($b):", "if False:"),
            ("own factor", "$f is not None and $f != $s", "$f is not None"),
        ],
        "Mask.become": [
            ("lowest", "$low < 0 or", "False or"),
            ("highest", "$high >= 1 << 64", "$high > 1 << 64"),
            ("reach", "max(0, ($l - 1) * $s)", "max(0, $l * $s)"),
            ("empty", "0 if 0 in $s else $t", "$t"),
        ],
        "Mask.numbers": [
            ("factor", "$s.steps, $s.name.scale", "$s.steps"),
        ],
        "Mask.__bool__": [
            ("true", "return True", "return False"),
        ],
        "Mask.__getitem__": [
            ("step", "$s * $p.step", "$s"),
            ("start", "$p.start * $s if", "$p.start if"),
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
            ("size", "($s + 7) // 8", "$s // 8 + 1"),
        ],
        "Mask.apply": [
            ("shape", "check_shape($*e)", "pass"),
        ],
        "as_factor": [
            ("zero", "0 < $v <= LARGEST", "0 <= $v <= LARGEST"),
            ("infinite", "0 < $v <= LARGEST", "0 < $v"),
            ("p = 1", "$p == 1 or", "False or"),
        ],
        "full_index": [
            ("ellipses", "if len($d) > 1:", "if False:"),
            ("too many", "if $a > $b:", "if False:"),
        ],
        "position": [
            ("bool", "isinstance($i, bool) or", "False or"),
            ("bound", "-$l <= $p < $l", "-$l <= $p <= $l"),
            ("negative", "return $p % $l", "return $p"),
        ],
        "check_shape": [
            ("axes", "$same and cnp.PyArray_DIM($a, $i)", "cnp.PyArray_DIM($a, $i)"),
        ],
        "new_mask": [
            ("strides", "$m.steps = $s", "pass"),
        ],
    },
    "core/generators.pyx": {
        "as_probability": [
            ("bool", "isinstance($p, bool) or", "False or"),
            ("complex", '"bcmMSUO"', '"bmMSUO"'),
            ("array", "and $n and $s)", "and $n)"),
            ("lowest", "not 0 <= $v <= 1", "not $v <= 1"),
            ("highest", "not 0 <= $v <= 1", "not 0 <= $v"),
        ],
        "as_numpy_flag": [
            ("other types", "if isinstance($v, np.bool_):", "if True:"),
        ],
        "ask": [
            ("changed arrays", "[layout_of($a) for $a in $s] != $b", "False"),
        ],
        "as_index": [
            ("bool", "isinstance($v, (bool, np.bool_))", "isinstance($v, np.bool_)"),
        ],
        "as_seed": [
            ("lowest", "-(1 << 63)", "-(1 << 62)"),
            ("highest", "< 1 << 64", "<= 1 << 64"),
            ("negative", "& 0xFFFFFFFFFFFFFFFF", "& 0x7FFFFFFFFFFFFFFF"),
        ],
        "as_count": [
            ("lowest", "0 <= $v < 1 << 64", "-1 <= $v < 1 << 64"),
            ("highest", "0 <= $v < 1 << 64", "0 <= $v < 1 << 63"),
        ],
        "entropy": [
            ("none", "os.urandom(8)", "bytes(8)"),
        ],
        "count_fork": [
            ("count", "$f += 1", "pass"),
        ],
        "Generator.restart": [
            ("calls", "$s.calls_ = 0", "pass"),
            ("spawned", "$s.spawned = 0", "pass"),
            ("born", "$f if $s is None else SEEDED", "SEEDED"),
        ],
        "Generator.refresh": [
            ("seeded", "$b != $f and $b != SEEDED", "$b != $f"),
        ],
        "Generator.name_next": [
            ("fork", "$s.refresh()", "pass"),
            ("last call", "if $c == LAST_CALL:", "if False:"),
            ("count", "$c += 1", "pass"),
        ],
        "Generator.take_back": [
            ("seed", "$a == $m.seed and $c == $m.call + 1", "$c == $m.call + 1"),
            ("call", "$a == $m.seed and $c == $m.call + 1", "$a == $m.seed"),
        ],
        "Generator.state": [
            ("fork", "$s.refresh()", "pass"),
            ("seeded", "$s.go_back($v, SEEDED)", "$s.go_back($v, $s.born)"),
        ],
        "Generator.go_back": [
            ("spawned", "$s.spawned = $v", "pass"),
            ("born", "$s.born = $b", "pass"),
        ],
        "Generator.spawn": [
            ("fork", "$s.refresh()", "pass"),
            ("too many", "if $c > LAST_CALL - $f:", "if False:"),
            ("count", "$s.spawned += $c", "$s.spawned += 1"),
            ("gamma", "$s + 2 * GAMMA", "$s + GAMMA"),
            ("child", "$f + <uint64_t>$k + 1", "$f + <uint64_t>$k"),
            ("no room", "$s.spawned = $f", "pass"),
        ],
        "manual_seed": [
            ("none", "as_seed($s)", "$s"),
        ],
        "as_rng": [
            ("sequence", "(np.random.Generator, np.random.SeedSequence)", "np.random.Generator"),
        ],
        "as_generator": [
            ("default", "return default", "return Generator()"),
        ],
        "own_generator": [
            ("none", "None if $r is None else as_generator($r)", "as_generator($r)"),
        ],
    },
    "core/calls.pyx": {
        "dropout": [
            ("evaluation", "$m is None or not as_flag($*e)", "$m is None"),
            ("rng", "as_rng($r)", "pass"),
            ("broadcast_dims", "if not empty($b):", "if False:"),
            ("p of the mask", "None if isinstance($m, Mask) else $p", "$p"),
        ],
        "dropout_axes": [
            ("rng", "$r = as_rng($r)", "pass"),
            ("evaluation", "if not $t:", "if False:"),
            ("factor", "$f is not None and 0 < $p < 1", "$f is not None"),
            ("copy", "$p or $o is not None", "$p"),
            ("out", "np.copyto($t, $a)", "pass"),
            ("exporters", "$x if $t is $a and isinstance($x, cnp.ndarray) else $t", "$x if $t is $a else $t"),
            ("own array", "$x if $t is $a and isinstance($x, cnp.ndarray) else $t", "$t"),
        ],
        "draw_mask": [
            ("empty", "$n.scale and cnp.PyArray_SIZE($x)", "$n.scale"),
            ("p = 1", "$n.scale and cnp.PyArray_SIZE($x)", "cnp.PyArray_SIZE($x)"),
            ("take back", "$g.take_back($n)", "pass"),
        ],
        "apply_given": [
            ("shape", "check_shape($*e)", "pass"),
            ("p", "if $p is not None and $p != (<Mask>$m).p:", "if False:"),
            ("type of the mask", "if not is_taken($m):", "if False:"),
            ("checks", "check_given($*e)", "pass"),
            ("overlap", "if np.may_share_memory($t, $g):", "if False:"),
            ("p = 1", "$s == 0", "$s == 2"),
            ("strided bits", "np.ascontiguousarray($g)", "$g"),
            ("exporters", "$x if isinstance($x, cnp.ndarray) else $a", "$x"),
        ],
        "apply_factors": [
            ("dropped", "np.copyto($y, 0, where=$d)", "pass"),
        ],
        "check_given": [
            ("size", "+ 7) // 8", "+ 8) // 8"),
            ("p", "$m.dtype != $x.dtype and $p is None", "False"),
        ],
    },
    "core/threads.pyx": {
        "set_num_threads": [
            ("bool", "isinstance($n, bool) or", "False or"),
            ("none", "$n < 1", "$n < 0"),
            ("many", "min($n, sys.maxsize)", "$n"),
        ],
        "from_environment": [
            ("number", "not $t.isdecimal() or", "False or"),
            ("none", "int($t) < 1", "False"),
        ],
        "enter": [
            ("maximum", "min(number, $m, $p)", "min($m, $p)"),
            ("taken", "if $p.taken or $h == 0:", "if $h == 0:"),
        ],
        "leave": [
            ("pieces", "$p.pieces = $p.next", "pass"),
            ("busy", "if $p.busy:", "if False:"),
        ],
        "take_part": [
            ("signals", "answer_signals(&$l)", "pass"),
            ("fork", "if $p != $s:", "if False:"),
        ],
        "do_all": [
            ("signals", "answer_signals(&$l)", "pass"),
        ],
        "share": [
            ("fork", "if $p == $s:", "if True:"),
        ],
        "answer_signals": [
            ("handlers", "PyErr_CheckSignals()", "pass"),
        ],
    },
    "core/pieces.pyx": {
        "apply_part": [
            ("start", "$s.start + $f", "$s.start"),
            ("bits", "$s.bits, $f, $s.scale", "$s.bits, 0, $s.scale"),
        ],
        "draw_bits_part": [("place", "$y + $f // 8", "$y + $f")],
        "draw_bools_part": [("start", "$s.start + $f", "$s.start")],
        "run_span": [("last piece", "($n % PIECE != 0)", "0")],
        "run_tile": [("bools", "$a.bools + <ptrdiff_t>$t.start", "$a.bools")],
    },
    "core/fused.pyx": {
        "trimmed": [("leading axes", "$s and $s[0] == 1", "False")],
        "bias_dropout_add": [
            ("overlap", "np.may_share_memory($o, $b) or", "False or"),
            ("take back", "$g.take_back(&$n)", "pass"),
        ],
        "check_operands": [
            ("type of bias", "if $b.dtype != $x.dtype:", "if False:", 1),
            ("type of residual", "if $b.dtype != $x.dtype:", "if False:", 2),
        ],
        "run_tile": [
            ("columns", "min($c - $d, <size_t>PIECE)", "<size_t>PIECE"),
            ("start", "$t.start + $f", "$t.start", 1),
            ("start of the backward", "$t.start + $f", "$t.start", 2),
            ("bias", "$b + $c * $t.size", "$b"),
            ("sums", "$t.sums + $c", "$t.sums"),
        ],
        "broadcast_at": [("lengths of one", "($b[$a] == 1 and $s[$i] != 1)", "$b[$a] == 1")],
        "run_backward": [("start", "&$m.name, $m.first", "&$m.name, 0")],
    },
    "core/tensors.pyx": {
        "read": [
            ("negative", "not $x.is_neg()", "True"),
            ("parameters", "type($x) is not Tensor and type($x) is not Parameter", "type($x) is not Tensor"),
            ("subclasses", "if type($x) is not Tensor and type($x) is not Parameter:", "if False:"),
        ],
        "is_ordinary": [
            ("transforms", "not transforms_active() and", "True and"),
            ("modes", "and not active_modes()", "and True"),
            ("tracing", "and tracing_state() is None", "and True"),
        ],
        "overlap": [
            ("axes of one", "if $l != 1", "if True"),
            ("empty", "if 0 in $s or len($l) > MAX_DIMS:", "if len($l) > MAX_DIMS:"),
        ],
        "is_new": [
            ("kind", "or $v.kind != $k", "or False"),
            ("bits", "or $v.bits != $b", "or False"),
            ("shape", "if $v.shape[$i] != $x.shape[$i]:", "if False:"),
            ("memory of x", "or $v.data == $x.data", "or False"),
            ("overlap", "not overlap($*e)", "True"),
        ],
        "compute": [
            ("signals", "$d.take_back()", "pass"),
            ("memory", 'check_new($y, &$t, &$s, $s.kind, $s.bits, "empty_like")', "read($y, &$t)"),
            ("copied back", "$y.copy_($c)", "pass"),
        ],
        "copy_first": [
            ("memory", "check_new($c, &$y, $*e)", "read($c, &$y)"),
            ("half types", "if not $d.shifts or $w.x.bits != 16 or $w.n == 0:", "if True:"),
            ("layout of x", "or not contiguous(&$w.x) or", "or"),
            ("layout of y", "or not contiguous(&$w.y)", ""),
        ],
        "compute_gradient": [
            ("forward mode", "$f >= 0 or", "False or"),
            ("second derivative", "($g.requires_grad and is_grad_enabled())", "False"),
        ],
        "run_strided": [
            ("axes of one", "if $x.shape[$i] != 1:", "if True:"),
            ("shared axes", "$s if $t is None else $t[$i]", "$s"),
            ("alpha dropout", "= $d.shifts, $d.shift, $d.constant", "= False, $d.shift, $d.constant"),
        ],
    },
    "core/draws.pyx": {
        "draw_seed": [
            ("seeds", "$c.draw(0, SEEDS)", "$c.draw(0, SEEDS - 1)"),
            ("generator", "if $g is not None:", "if False:"),
        ],
        "check_source": [
            ("backward pass", "if not any([$g is $o for $o in $r.generators]):", "if False:"),
            ("restored", "any([$g is $o for $o in $r.generators])", "False"),
            ("default generator", "!= -1 and $g is not torch.default_generator", "!= -1"),
            ("graphs", "if isinstance($g, Generator) and ($*e):", "if False:"),
        ],
        "draw_from": [("sources", "check_source($g)", "pass")],
        "restore": [
            ("drawn since", "$n == $a if", "True if"),
            ("state", "set_state($g, $b)", "pass"),
            ("drawn since from PyTorch's", "torch.equal($*e)", "True"),
            ("modes", "with undisturbed():", "if True:"),
        ],
        "Cell.__init__": [("modes", "with undisturbed(),", "with")],
        "set_state": [("born", "(<Generator>$g).born)", "-1)")],
        "linear": [("alpha", '(*$n[:-1], "alpha_gradient") if $n[-1] == "alpha" else $n', "$n")],
        "Draw.__init__": [
            ("form", "if $f not in FORMS:", "if False:"),
            ("keep", '(1, 0, 0) if $f == "keep" else alpha_terms($p)', "alpha_terms($p)"),
            ("gradient of alpha", '$s.shifts = $f == "alpha"', "$s.shifts = True"),
        ],
        "Draw.draw": [
            ("once", "if $d:", "if False:"),
            ("p = 1", "if $p != 1:", "if True:"),
            ("source", "check_source($*e)", "pass"),
        ],
        "Draw.take_back": [
            ("generator", "(<Generator>$g).take_back(&$m)", "pass"),
            ("PyTorch's", "restore($*e)", "pass"),
        ],
        "Draw.linear": [("alpha", "drawn(*$s.numbers()) if $a or $b else $s", "$s")],
    },
    "core/openmp.pyx": {
        "take_part": [
            ("team", "if $m < $t:", "if True:"),
            ("first", "$a.first + $i", "$i"),
        ],
        "share_by_openmp": [
            ("maximum", "min(exchange_number(0), $m, $p)", "min($m, $p)"),
            ("fork", "$p == NULL or forked or $t < 2", "$p == NULL or $t < 2"),
            ("signals", "answer_signals(&$l)", "pass"),
        ],
        "sharers_by_openmp": [("fork", "if $p == NULL or forked:", "if $p == NULL:")],
    },
    "core/xla.pyx": {
        "multiply": [("large", "$p[0] != 0 and $f > LARGEST // $p[0]", "False")],
        "code_of": [("half", "if $b.dtype == XLA_F16:", "if False:")],
        "is_sound": [
            ("struct", "or $b.struct_size < sizeof(Buffer)", "or False"),
            ("negative length", "$b.dims[$i] < 0 or", "False or"),
            ("memory", "$b.data != NULL or $n == 0", "True"),
        ],
        "begins_alike": [("lengths", "if $a.dims[$i] != $b.dims[$i]:", "if False:")],
        "check_frame": [
            ("stage", "if $f.stage != EXECUTE:", "if False:"),
            ("operands", "$f.operands.size != 4 or", "False or"),
            ("attributes", "or $f.attributes.size != 0", "or False"),
            ("results", "or not are_sound(&$f.results, 1)", "or False"),
        ],
        "check_types": [
            ("key", "$k.dtype != XLA_U32 or $n < 0", "$n < 0"),
            ("type of x", "code_of($x) < 0 or", "False or"),
            ("result", "if $a.dtype != $b.dtype or", "if"),
            ("masks", "$m *= <size_t>$d[$i]", "pass"),
            ("one p", "1 if $r == $b else $m", "1"),
        ],
        "join": [("order", "<uint64_t>$w[0] << 32 | $w[1]", "<uint64_t>$w[1] << 32 | $w[0]")],
        "check_window": [
            ("shared", "0 if $l == 1 else <int64_t>$s", "<int64_t>$s"),
            ("offset", "$s += $o * $t", "pass"),
            ("reach", "$a > $l or $o > $l - $a", "$a > $l"),
            ("length", "if $l == 0:", "if True:"),
        ],
        "probability": [
            ("index", "$w + 2 * $i", "$w"),
            ("one", "if $c.probabilities == 1:", "if False:"),
        ],
        "check": [("p", "if kernels.mask_init($*e) < 0:", "if False:")],
        "apply_mask": [
            ("key of each", "+ $i * <size_t>$w", "+ 0 * <size_t>$w"),
            ("call", "join($w + 2) if $n == 4 else 0", "0"),
            ("place", "$i * $c.size * itemsize_of($c.x)", "0"),
        ],
    },
    "functional.py": {
        "_drop_channels": [
            ("batch", "2 if $b else 1", "1"),
            ("few axes", "if $n < $c:", "if False:"),
        ],
        "dropout1d": [("batch", "$n == 3", "True")],
        "dropout3d": [("batch", "$n == 5", "True")],
        "drop_path": [
            ("axes", "range(1, $x.ndim)", "range($x.ndim)"),
            ("scale", "None if $s else 1.0", "None"),
        ],
        "_alpha_dropout": [
            ("evaluation", "not $t or $p in (0, 1)", "$p in (0, 1)"),
            ("bounds of p", "not $t or $p in (0, 1)", "not $t"),
            ("changed arrays", "ask($r, [$s, $t])", "ask($r, [])"),
        ],
        "feature_alpha_dropout": [
            ("few axes", "if $x.ndim < 2:", "if False:"),
            ("axes", "range(2, $x.ndim)", "range(1, $x.ndim)"),
        ],
        "check_copies": [
            ("none", "$n < 0", "$n < 1"),
            ("bool", "isinstance($n, bool) or", "False or"),
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
        "Dropout.eval": [("mode", "$s.train(False)", "$s.train(True)")],
        "_Variant.forward": [("training", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, True, $s.inplace")],
        "DropPath.function": [("scale", "scale_by_keep=$s.scale_by_keep", "scale_by_keep=True")],
        "always_on": [
            ("on", "$m.train(True)", "pass"),
            ("back", "$m.train($b)", "$m.train(False)", 2),
        ],
        "_all_modules": [("dict", "$t.values()", "$t.keys()")],
    },
    "torch/functional.py": {
        "dropout1d": [("axis", "$x.dim() - 1", "$x.dim() - 2")],
        "dropout2d": [("axes", "(2, 3)", "(3,)")],
        "dropout3d": [("axes", "range($n - 3, $n)", "range($n - 2, $n)")],
        "_unusual": [("generator", "if $g is not None:", "if False:")],
        "feature_alpha_dropout": [("axes", "range(2, $x.dim())", "range(1, $x.dim())")],
        "drop_path": [
            ("scale", '"scale" if $s else "keep"', '"scale"'),
            ("scale elsewhere", "$f if $s or $p == 1 else $f * (1 - $p)", "$f"),
            ("inplace elsewhere", "$x.mul_($f) if $i else $x * $f", "$x * $f"),
            ("symbolic", "is_symbolic($x)", "False"),
        ],
        "mc_dropout": [("copies", "$y if $p else $y.clone()", "$y")],
        "bias_dropout_add": [
            ("type of residual", "and $r.dtype == $t.dtype", "and True"),
            ("shape of residual", "and $r.shape == $t.shape", "and True"),
        ],
    },
    "torch/masked.py": {
        "check_generator": [("types", "if not ($*e):", "if False:")],
        "draw_name": [("p = 1", "if $p == 1:", "if False:")],
        "then_or_restore": [("restored", "restore($g, $b, $a)", "pass")],
        "Eager.forward": [("dirty", "if $i:", "if False:")],
        "Eager.backward": [("gradient", "Masked.apply($g, *$d.numbers()) if $x is None else $x", "$g if $x is None else $x")],
        "Masked.forward": [
            ("wrapped", "if is_plain($x):", "if True:"),
            ("NaN", "torch.where($s != 0, $x.to($w) * $s, 0)", "($x.to($w) * $s)"),
        ],
        "Masked.setup_context": [
            ("linear", "linear($n)", "$n"),
            ("seed", "$c.save_for_backward($s)", "pass"),
        ],
        "_check_in_place": [
            ("overlap", "if torch._debug_has_internal_overlap($x):", "if False:"),
            ("views", "($x.is_leaf or $x._is_view())", "$x.is_leaf"),
            ("leaves", "($x.is_leaf or $x._is_view())", "$x._is_view()"),
            ("inference", "if $x.is_inference() and not torch.is_inference_mode_enabled():", "if False:"),
        ],
        "_check_overlap": [("refused", "if overlap($*e):", "if False:")],
        "in_eager_mode": [
            ("views", "if $f or ($w and $x._is_view()):", "if $f:"),
            ("version", "torch.autograd.graph.increment_version($x)", "pass"),
            ("forward mode", "$f >= 0", "False"),
            ("autograd", "$x.requires_grad and is_grad_enabled()", "False"),
            ("generator", "check_generator($g)", "pass"),
            ("keep", "$d.keep = $k", "pass"),
        ],
        "under_transforms": [
            ("inplace", "$x.copy_($y) if $i else $y", "$y"),
            ("overlap", "_check_overlap($x)", "pass"),
        ],
        "in_a_graph": [("inplace", "$x.copy_($y) if $i else $y", "$y")],
        "way_for": [
            ("tracing", "if torch._C._get_tracing_state() is not None:", "if False:"),
            ("subclasses", "type($x) is not Tensor or not _fits($x)", "not _fits($x)"),
            ("functionalized", "in_a_graph if $f else under_transforms", "under_transforms"),
        ],
        "_fits": [
            ("device", '$x.device.type == "cpu" and', "True and"),
            ("type", "$x.dtype in DTYPES and", "True and"),
        ],
        "masked": [
            ("training", "$t is True and", "$t and"),
            ("sound", "isinstance($t, bool) and", "True and"),
            ("p = 0", "not $t or $p == 0 or", "not $t or"),
            ("evaluation", "not $t or $p == 0 or", "$p == 0 or"),
            ("symbolic", "if isinstance($x, Proxy):", "if False:"),
        ],
    },
    "torch/operators.py": {
        "batched": [
            ("shared axes", "$a + 1 for $a", "$a for $a"),
            ("one mask", "(0, *$s)", "$s"),
            ("first seed", "$s.select($d[1], 0)", "$s.select($d[1], -1)"),
            ("axis of x", "$x.movedim($d[0], 0)", "$x"),
        ],
        "_": [("large seeds", "& WORD", "& (WORD >> 1)")],
        "InGraph.forward": [("linear", "linear($n)", "$n")],
        "InGraph.backward": [("gradient", "dropout_operator($g, *$c.saved_tensors, *$c.name)", "$g")],
        "InGraph.jvp": [("tangent", "dropout_operator($g, *$c.saved_tensors, *$c.name)", "$g")],
        "saved_seed": [("copy", "$s.clone()", "torch.zeros_like($s)")],
    },
    "torch/replay.py": {
        "checkpoint_context": [("types", "if not isinstance($g, (torch.Generator, Generator)):", "if False:")],
        "_FirstRun.__enter__": [("inner", "$s.inner.__enter__()", "pass")],
        "_SecondRun.__enter__": [
            ("states", "_restore($*e)", "pass"),
            ("outer", "(*$s.outer, *$g)", "$g"),
        ],
        "_SecondRun.__exit__": [
            ("states", "_restore($*e)", "pass"),
            ("outer", "$r.generators = $s.outer", "pass"),
        ],
    },
    "torch/tracing.py": {
        "symbolic_call": [
            ("generator", "if $g is not None:", "if False:"),
        ],
        "is_recorded": [
            ("subclasses", "type($m) not in WHOLE or", "False or"),
            ("tracers", "and isinstance($t, Tracer)", "and True"),
            ("root", "$m is not $r and", "True and"),
        ],
        "record_module": [
            ("hooks", "any($h) or", "False or"),
            ("global hooks", "or $n._global_forward_hooks or $n._global_forward_pre_hooks", "or False"),
        ],
    },
    "torch/modules.py": {
        "_Here.__init__": [
            ("p", "if not 0 <= $p <= 1:", "if False:"),
            ("generator", "check_generator($g)", "pass"),
        ],
        "Dropout.forward": [("generator", "generator=$s.generator", "generator=None")],
        "AlphaDropout.forward": [("generator", "generator=$s.generator", "generator=None")],
        "Dropout3d.forward": [("training", "$x, $s.p, $s.training, $s.inplace", "$x, $s.p, True, $s.inplace", 2)],
        "convert": [("no dropout", "(nn.MultiheadAttention, nn.RNNBase)) and $m.dropout", "(nn.MultiheadAttention, nn.RNNBase))")],
        "revert": [("generator", "and $m.generator is None", "and True")],
    },
    "torch/reroute.py": {
        "_Switch.change": [
            ("depth", "$s.on or $s.depth > 0", "$s.on"),
            ("nested", "$s.depth += $d", "$s.depth = $d"),
        ],
        "_Acceleration.__call__": [
            ("generators", "if any($*e):", "if False:"),
            ("wrapped", "inspect.unwrap($f)", "$f"),
            ("results", "if isinstance($r, SUSPENDED):", "if False:"),
        ],
        "KEYS": [("inference", '"AutogradCPU", "CPU"', '"AutogradCPU",')],
        "_registered": [("taken apart", "if $c not in $o.py_kernels:", "if False:")],
        "_our_way": [
            ("switch", "$s.active and", "True and"),
            ("evaluation", "$t is not False and", "True and"),
            ("p", "0 < $p <= 1", "True"),
            ("modes", "$w if is_plain($x) and $x.numel() != 0 else None", "None"),
        ],
        "_rerouted": [
            ("few axes", "or $x.dim() < ($f or 0)", "or False"),
            ("axes", "range($f, $x.dim())", "range($f - 1, $x.dim())"),
            ("alpha", '"alpha" if $a else "scale"', '"scale"'),
        ],
    },
    "jax.py": {
        "dropout": [
            ("key", "_is_typed($k)", "pass"),
            ("shared axes", "1 << $a for $a, $s in enumerate($t) if $s == 0", "1 << $a for $a, $s in enumerate($t) if False"),
            ("bits of p", '">f8"', '">f4"'),
        ],
        "_check_static": [("traced", "if any($*e):", "if False:")],
        "_check_p": [
            ("types", "if $p.shape or not any($*e):", "if $p.shape:"),
            ("shapes", "if $p.shape or not any($*e):", "if False:"),
        ],
        "_seed_and_call": [
            ("order of words", "$h << 32 | $l", "$l << 32 | $h"),
            ("call", "$r[0] << 32 | $r[1] if $r else 0", "0"),
        ],
        "_is_typed": [("type", "if $d != np.uint32:", "if False:")],
        "_words": [("shape", "if $w.shape not in $*e:", "if False:")],
        "_result": [("varying", "if not _varying($k) <= _varying($x):", "if False:")],
        "_jvp_of_p": [("refused", "raise NotImplementedError($*e)", "return _[0]")],
        "_transpose": [("gradient", "_dropout.bind($k, $g, $p, **$q)", "$g")],
        "_batch": [
            ("shared", "$s << 1 | 1", "$s << 1"),
            ("axis of x", "jnp.moveaxis($x, $a, $f)", "$x"),
            ("p of each", "($p, $a) if $k is None else ($l, $b)", "($l, $b)"),
        ],
        "_to_front": [("axis", "jnp.moveaxis($k, $a, 0)", "$k")],
        "_window": [("shared", "$s >> $a & 1 for", "0 for")],
        "_apply": [
            ("start", "*_seed_and_call($k[$i]), $s, $t", "*_seed_and_call($k[$i]), 0, $t"),
            ("length", "$l or $x for", "$x for"),
        ],
        "_lower": [("inplace", "{1: 0} if $i else None", "None")],
    },
    "flax.py": {
        "_is_identity": [
            ("evaluation", "$d or (", "False or ("),
            ("traced", "not isinstance($r, jax.core.Tracer) and", "True and"),
        ],
        "_key_of": [("none", "if $r is None:", "if False:")],
        "Dropout.__call__": [
            ("flag", "check_flag($*e)", "pass"),
            ("undecided", "if $d is None:", "if False:", 2),
            ("own key", "$s.rngs if $r is None else $r", "$s.rngs"),
            ("axes", "tuple($s.broadcast_dims)", "()"),
        ],
        "LinenDropout.__call__": [
            ("flag", "check_flag($*e)", "pass"),
            ("own key", "$s.make_rng($c) if $r is None else $r", "$s.make_rng($c)"),
            ("axes", "tuple($s.broadcast_dims)", "()"),
        ],
    },
    "dask.py": {
        "dropout": [
            ("seed and rng", "if $s is not None and $r is not None:", "if False:"),
            ("call alone", "if $s is None and $c != 0:", "if False:"),
            ("empty", "min($x.size, 1)", "1"),
            ("evaluation", "$p if $t else 0", "$p"),
        ],
        "dropout_backward": [
            ("shape", "if $m.shape != $g.shape:", "if False:"),
            ("identity", "$m.p == 0 and $m.factor == 1", "False"),
        ],
        "_checked_meta": [
            ("unknown size", "if any($*e):", "if False:"),
            ("type", "return Mask($s, 0.5).apply($m)", "return $m"),
        ],
    },
    "keras.py": {
        "_generator": [
            ("signs", "& 0xFFFFFFFF", "& 0x7FFFFFFF"),
            ("call", '{"calls": $c}', '{"calls": 0}'),
        ],
        "_draw_jax": [("words", "[1::2]", "[::2]")],
        "_draw_tensorflow": [("noise", "1 if $a in $s else None", "None")],
        "_draw_for": [("type", "if $*e not in FLOATS:", "if False:")],
        "_Drawn.call": [
            ("evaluation", "$t and 0 < $r < 1", "0 < $r < 1"),
        ],
        "_Spatial._shared_axes": [
            ("format", '"channels_first"', '"channels_last"'),
            ("axes", "len($s) - 1", "len($s)"),
        ],
        "Dropout._shared_axes": [
            ("shape", "$d in (None, 1, $l)", "True"),
            ("none", "if $d == 1", "if $d in (1, None)"),
            ("unknown", "$l is None or", "False or"),
        ],
    },
    "tensorflow/_tf.pyx": {
        "check_masks": [
            ("dimensions", "if $n > MAX_DIMS:", "if False:"),
            ("last axis", "or tf.get_length($*e) != 2:", "or False:"),
            ("scalar", "$l < 0 or $n < 0", "$n < 0"),
            ("lead", "if $c.shape[$i] != tf.get_length($*e):", "if False:"),
        ],
        "check_rates": [("p", "if kernels.mask_init($*e) < 0:", "if False:")],
        "check_noise_shape": [
            ("missing", "if $b + $i >= 0 else 1", "if $b + $i >= 0 else INT64_MIN"),
            ("whole", "if $d == INT64_MIN:", "if False:"),
            ("fits", "if $d != 1 and $d != $l:", "if False:"),
            ("shared", "0 if $d == 1 else $s", "$s"),
            ("too long", "if $n[$i] != 1:", "if False:"),
        ],
        "infer_shape": [("shape", "tf.set_output_shape($*e)", "pass")],
        "register": [("again", "if $f(NAME):", "if False:")],
    },
    "tensorflow/op.py": {
        "_gradient": [("twice", "return apply($g, $*e)", "return $g")],
        "_vectorize": [
            ("noise", "$i.unstacked_input(3)", "0"),
            ("rate", "if $s or $r.shape.rank != 0:", "if False:"),
            ("ranks", "[1] * $m", "[1] * 0"),
        ],
        "is_traced_for_xla": [("never", "GraphOrParentsInXlaContext($*e)", "False")],
        "_library": [("windows", "$d if $d.exists() else $m", "$m")],
        "_load": [("gradient", "tf.RegisterGradient(NAME)(_gradient)", "pass")],
    },
    "tensorflow/functional.py": {
        "stateless_dropout": [("algorithm", 'if $r != "auto_select":', "if False:")],
        "_dropout": [
            ("nan", "if $r != $r:", "if False:"),
            ("ends", "if not 0 < $r < 1:", "if not 0 <= $r <= 1:"),
            ("ragged", "if isinstance($x, tf.RaggedTensor):", "if False:"),
            ("name", 'tf.name_scope($n or "dropout")', 'tf.name_scope("dropout")'),
        ],
        "is_supported": [
            ("device", 'if $x.device and "CPU:" not in $x.device:', "if False:"),
            ("type", "or $x.dtype not in FLOATS", "or False"),
        ],
        "_as_float64": [
            ("rank", "$r.shape.assert_has_rank(0)", "pass"),
            ("type", "if not $r.dtype.is_floating:", "if False:"),
        ],
        "_as_mask_id": [
            ("two", "and len($s) == 2", "and True"),
            ("shape", "and $s.shape.is_compatible_with([2])", "and True"),
        ],
        "_is_int64": [("bool", "and not isinstance($n, bool)", "and True")],
        "_next_mask_id": [
            ("seed", "seed=seed", "seed=None"),
            ("second", "$g << 31 | $f, $s", "$g << 31, 0"),
            ("entropy", "os.urandom(16)", "bytes(16)"),
        ],
    },
    "thinc.py": {
        "CdropoutOps.get_dropout_mask": [
            ("all dropped", "$d >= 1", "$d > 1"),
            ("negative", "$d <= 0", "$d == 0"),
            ("seed", "np.random.randint(1 << 64, dtype=np.uint64)", "0"),
        ],
        "use_cdropout": [("ops", "set_current_ops(CdropoutOps())", "pass")],
    },
}
