package value

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func TestRaw(t *testing.T) {
	for _, x := range []struct{ text, bytes string }{
		{`""`, ""},
		{`"a b "`, "a b "},
		{`"\udcff\udc80"`, "\xff\x80"},
		{`"a\udcffé\n\""`, "a\xffé\n\""},
		{"\"a\xff\\n\"", "a\xff\n"},
		{`"\ud83d\ude00\udce9"`, "\U0001f600\xe9"}, // a pair, then a lone one
		{`"\\udcff"`, `\udcff`},
		{`"\udc7f\ud800\udd00x"`, "\ufffd\U00010100x"},
		{`"\ud800"`, "\ufffd"},
	} {
		var r Raw
		if err := json.Unmarshal([]byte(x.text), &r); err != nil || string(r) != x.bytes {
			t.Errorf("%s is read as %q, %v, not as %q", x.text, r, err, x.bytes)
		}
	}
	for _, text := range []string{`1`, `["a"]`, `{}`, `true`} {
		var r Raw
		if err := json.Unmarshal([]byte(text), &r); err == nil {
			t.Errorf("%s is read as %q", text, r)
		}
	}
	var list []Raw
	if err := json.Unmarshal([]byte(`["a",null,"b"]`), &list); err != nil || len(list) != 3 {
		t.Errorf("a list with null is %q, %v", list, err)
	}
}

// FuzzRaw checks that every string survives, and that other readers see text in UTF-8 unchanged.
func FuzzRaw(f *testing.F) {
	for _, s := range []string{"", "a b ", "\xff", "é\x80\n", "\xed\xb3\xbf", "<&>\u2028", "\\udcff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(Raw(s))
		if err != nil || !utf8.Valid(b) {
			t.Fatalf("%q is written as %q, %v", s, b, err)
		}
		var again Raw
		if err := json.Unmarshal(b, &again); err != nil || string(again) != s {
			t.Errorf("%q is written as %s and read as %q, %v", s, b, again, err)
		}
		var text string
		if err := json.Unmarshal(b, &text); err != nil || utf8.ValidString(s) && text != s {
			t.Errorf("%q is written as %s and read by others as %q, %v", s, b, text, err)
		}
	})
}

// FuzzRawText checks that others' text is read as encoding/json reads it, but for what is no UTF-8.
func FuzzRawText(f *testing.F) {
	for _, s := range []string{`"a"`, `"\ud83d\ude00"`, `"\udcff"`, `null`, `"\`, "\"\xff\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Raw
		var s string
		err, want := json.Unmarshal(b, &r), json.Unmarshal(b, &s)
		if (err == nil) != (want == nil) {
			t.Fatalf("%q: %v, not %v", b, err, want)
		}
		own := !utf8.Valid(b) || bytes.Contains(bytes.ToLower(b), []byte(`\udc`))
		if !own && string(r) != s {
			t.Errorf("%q is read as %q, not as %q", b, r, s)
		}
	})
}
