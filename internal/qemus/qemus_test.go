package qemus

import "testing"

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}}}` +
			"\n{\"return\": {}}\n": "7.2.22",
		`{"return": {}}`: "",
		"":               "",
		"qemu: hello":    "",
		`{"QMP": {"version": {"qemu": {"major": "\u001b[2J"}}}}`: "",
	} {
		got, err := parseVersion([]byte(text))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
