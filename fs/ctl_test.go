package fs

import (
	"slices"
	"testing"
)

func TestCutControl(t *testing.T) {
	for _, x := range []struct{ command, word, text string }{
		{"run ls\n", "run", "ls"},
		{"run  ls \t\n", "run", " ls \t"},
		{"run ls\n\n", "run", "ls\n"},
		{"run a\nb", "run", "a\nb"},
		{"env A=\xff \n", "env", "A=\xff "},
		{"dir /a \n", "dir", "/a "},
		{"user u ", "user", "u "},
		{" timeout  5 \n", "timeout", "5"},
		{"eof\n\n", "eof", ""},
		{"argv [\"a\"] \n", "argv", `["a"]`},
		{"", "", ""},
	} {
		if word, text := cutControl(x.command); word != x.word || text != x.text {
			t.Errorf("%q is %q and %q, not %q and %q", x.command, word, text, x.word, x.text)
		}
	}
}

func TestParseArgv(t *testing.T) {
	for text, want := range map[string][]string{
		`["uname", "-a"]`:      {"uname", "-a"},
		`["a ", "", "\udcff"]`: {"a ", "", "\xff"},
		"[\"a\xff\"]":          {"a\xff"},
		`[]`:                   nil,
		`[""]`:                 nil,
		`["a\u0000"]`:          nil,
		`["a", 1]`:             nil,
		`uname`:                nil,
	} {
		if got, err := parseArgv(text); !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%s is %q, %v, not %q", text, got, err, want)
		}
	}
}
