package printable

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ in, escaped, sentence string }{
		{"", "", ""},
		{"nginx -g 'a'", "nginx -g 'a'", "nginx -g 'a'"},
		{"a\tb\nc\rd", `a\x09b\x0ac\x0dd`, `a\x09b\x0ac\x0dd`},
		{"\x1b[31m\x00\x7f", `\x1b[31m\x00\x7f`, `\x1b[31m\x00\x7f`},
		{`a\x1b`, `a\x5cx1b`, `a\x1b`},
		{"grün €", "grün €", "grün €"},
		{"a\u0085\u202e\u200b", `a\xc2\x85\xe2\x80\xae\xe2\x80\x8b`, `a\xc2\x85\xe2\x80\xae\xe2\x80\x8b`},
		{"\xff\xc3(", `\xff\xc3(`, `\xff\xc3(`},
		{"\ufffd", "\ufffd", "\ufffd"},
		{strings.Repeat("a", Max+1), strings.Repeat("a", Max), strings.Repeat("a", Max)},
		{strings.Repeat("a", Max-1) + "€", strings.Repeat("a", Max-1), strings.Repeat("a", Max-1)},
		{strings.Repeat("a", Max-3) + "€", strings.Repeat("a", Max-3) + "€", strings.Repeat("a", Max-3) + "€"},
	} {
		if got := Escape(c.in); got != c.escaped {
			t.Errorf("Escape(%q) = %q, want %q", c.in, got, c.escaped)
		}
		if got := Sentence(c.in); got != c.sentence {
			t.Errorf("Sentence(%q) = %q, want %q", c.in, got, c.sentence)
		}
	}
}

func TestLine(t *testing.T) {
	in := "a\n2026-01-01T00:00:00.000Z banger: forged\x1b[2J gr\u00fcn\u009b" + strings.Repeat("x", 2*Max)
	want := `a\x0a2026-01-01T00:00:00.000Z banger: forged\x1b[2J gr\xc3\xbcn\xc2\x9b` + strings.Repeat("x", 2*Max)
	if got := Line(in); got != want {
		t.Errorf("%q", got)
	}
	if got, want := Message("gr\u00fcn \\x1b\n"), `grün \x1b\x0a`; got != want {
		t.Errorf("%q", got)
	}
	if got, want := Name("a\\b\n"), `a\x5cb\x0a`; got != want {
		t.Errorf("%q", got)
	}
}

func TestMask(t *testing.T) {
	b := []byte("a\tb\n\x00\x1b[31m\xc2\x9b\x7f\r")
	if Mask(b); string(b) != "a\tb\n\x00?[31m????" {
		t.Errorf("%q", b)
	}
}

func TestJSON(t *testing.T) {
	in := "a\x1b\u009b\u202e\u2066\x7f €"
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	b = JSON(b)
	for _, r := range string(b) {
		if control(r) {
			t.Errorf("%q", b)
		}
	}
	var out string
	if err := json.Unmarshal(b, &out); err != nil || out != in || !utf8.Valid(b) {
		t.Errorf("%q, %v", out, err)
	}
}
