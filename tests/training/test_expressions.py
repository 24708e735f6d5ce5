import pytest

from training.expressions import Call, parse, parse_short, parse_value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adamw", Call("adamw")),
        (" adamw() ", Call("adamw")),
        ("accumulate(adamw, 4)", Call("accumulate", (Call("adamw"), 4))),
        ("cosine(1, -0.5, warmup=1e3)", Call("cosine", (1, -0.5), {"warmup": 1000.0})),
        ("f(true, False, none)", Call("f", (True, False, None))),
        ("f(inner=g(2), k=-1)", Call("f", (), {"inner": Call("g", (2,)), "k": -1})),
        (
            "lookahead(sam(accumulate(adamw, 4)), k=5)",
            Call(
                "lookahead",
                (Call("sam", (Call("accumulate", (Call("adamw"), 4)),)),),
                {"k": 5},
            ),
        ),
    ],
)
def test_an_expression_is_a_tree_and_its_text_gives_it_back(text, expected):
    call = parse(text)
    assert call == expected
    assert parse(str(call)) == call
    assert str(parse(str(call))) == str(call)


def test_numbers_keep_their_kind():
    kinds = [type(value) for value in parse("f(1, 1.0, 1e3, -2, true)").arguments]
    assert kinds == [int, float, float, int, bool]
    assert str(parse("f( 1,1e-3,.5,k = True)")) == "f(1, 0.001, 0.5, k=true)"


def test_equal_calls_hash_alike():
    assert len({parse("f(g, k=1)"), parse("f(g(), k=1)"), parse("f(g, k=2)")}) == 2


def test_a_value_may_stand_alone_where_one_is_asked_for():
    assert parse_value("-32") == -32
    assert parse_value("none") is None
    assert parse_value("cosine") == Call("cosine")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("f(1 + 2)", r"at character 3 of 'f\(1 \+ 2\)'. Received: 1 \+ 2"),
        ("f(a.b)", "at character 3 .* Received: a.b"),
        ("f(é, 'x')", r"at character 6 .* Received: 'x'"),  # characters, not bytes
        ("f(g(1)(2))", "Received: g"),
        ("f([1])", r"Received: \[1\]"),
        ("f(*a)", r"Received: \*a"),
        ("f(**a)", r"name=value .* Received: \*\*a"),
        ("f(k=1, k=2)", "expects k once at character 8"),
        ("f(1j)", "Received: 1j"),
        ("f(--1)", "Received: --1"),
        ("f(-true)", "Received: -true"),
        ("f(-True)", "Received: -True"),
        ("f(1e999)", "a finite number .* Received: 1e999"),
        (f"f({10**400})", "a finite number"),
        ("f(x for x in y)", "at character 2"),
        ("none(1)", r"Received: none\(1\)"),
        ("f(", "was never closed at character 2"),
        ("", "names, numbers, commas and brackets"),
        ("f(k=1, 2)", "positional argument follows keyword"),
        ("f(\0)", "null byte"),
        ("f(" * 5000, "Received"),
        ("-" * 200_000 + "1", "Received"),
        ("32", "must be a name, or a name with arguments"),
        ("none", "must be a name, or a name with arguments"),
        ("__import__('os').system('true')", "Received: __import__"),
    ],
)
def test_anything_else_is_refused_with_its_place(text, found):
    with pytest.raises(ValueError, match=rf"(?s)^strategy .*{found}"):
        parse(text, "strategy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sam", [("sam", ())]),
        ("accumulate:4", [("accumulate", (4,))]),
        ("diloco:4x20", [("diloco", (4, 20))]),
        ("lookahead:5x0.5", [("lookahead", (5, 0.5))]),
        ("lookahead:5+sam", [("lookahead", (5,)), ("sam", ())]),
        ("a:1e+3+b:-2x1e-3 + c", [("a", (1000.0,)), ("b", (-2, 1e-3)), ("c", ())]),
    ],
)
def test_the_short_form_names_the_outermost_first(text, expected):
    parts = parse_short(text, "--strategies")
    assert parts == expected
    for (_, numbers), (_, wanted) in zip(parts, expected, strict=True):
        assert list(map(type, numbers)) == list(map(type, wanted))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sam:",
        "sam:a",
        "4",
        "sam+",
        "+sam",
        "sam:4x",
        "sam:4,5",
        "a b",
        "a:1e999",
        "a:" + "1" * 5000,
    ],
)
def test_a_wrong_short_form_is_refused(text):
    with pytest.raises(ValueError, match=r"^--strategies takes .* Received: "):
        parse_short(text, "--strategies")
