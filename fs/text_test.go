package fs

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCell(t *testing.T) {
	for in, want := range map[string]string{"": "-", "a b": `a\x20b`, "-": "-", " ": `\x20`} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	got := string(tableOf([][]string{{"a", "1", "free text"}, {"grün", "22", ""}, {"b", "", "x"}}))
	want := "a     1   free text\ngrün  22\nb         x\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if b := tableOf(nil); len(b) != 0 {
		t.Errorf("no rows are %q", b)
	}
}

func TestFlat(t *testing.T) {
	pairs := []pair{{key: "state", value: "running"}, {"cpu", 1.5, "1.50"}, {key: "cmdline", value: ""}, {key: "odd", value: "a\"\x1b"}}
	if got, want := string(flat(pairs)), "state running\ncpu 1.50\ncmdline\nodd a\"\x1b\n"; got != want {
		t.Errorf("flat is %q, want %q", got, want)
	}
	b, err := object(pairs)
	if want := `{"state":"running","cpu":1.5,"cmdline":"","odd":"a\"\u001b"}` + "\n"; err != nil || string(b) != want {
		t.Errorf("object is %q, %v, want %q", b, err, want)
	}
}

// FuzzRow: whatever a guest says, a row is one line of as many words as columns, then free text.
func FuzzRow(f *testing.F) {
	for _, s := range []string{"nginx", "a b", "\x1b[31m\n", "\xff\xfe", "€\u202e", "", "  "} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, process, command string) {
		text := string(tableOf([][]string{{"tcp", cell(process), escape(command)}}))
		if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
			t.Fatalf("%q is not one line", text)
		}
		if !utf8.ValidString(text) {
			t.Errorf("%q is no UTF-8", text)
		}
		for _, r := range strings.TrimSuffix(text, "\n") {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Errorf("%q holds %#x", text, r)
			}
		}
		first, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), "  ")
		second, _, _ := strings.Cut(rest, " ")
		if first != "tcp" || second != cell(process) {
			t.Errorf("%q has the words %q and %q", text, first, second)
		}
		b, err := jsonLine([]string{process, command})
		if err != nil || !json.Valid(b) {
			t.Errorf("%q is no JSON: %v", b, err)
		}
	})
}

func tableOf(rows [][]string) []byte {
	var t table
	for _, row := range rows {
		for _, c := range row {
			t.add(c)
		}
		t.endRow()
	}
	return t.text()
}
