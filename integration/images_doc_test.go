package integration

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// specFields are the fields of an image's configuration in image-spec, config.md, and those that
// docker's own configuration has beside them.
var specFields = strings.Fields(`User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels
	StopSignal Memory MemorySwap CpuShares Healthcheck ArgsEscaped created author architecture os
	os.version os.features variant rootfs history OnBuild Shell Hostname Domainname Tty OpenStdin
	StdinOnce AttachStdin AttachStdout AttachStderr NetworkDisabled MacAddress StopTimeout Image`)

var fieldName = regexp.MustCompile("`([A-Za-z.]+)`")

// TestImageFields expects that docs/images.md has each field of an image's configuration once, and
// that each of its rows says what banger does and names tests that exist.
func TestImageFields(t *testing.T) {
	p := newProvenBy(t, "..")
	text, err := os.ReadFile("../docs/images.md")
	must(t, err)
	var fields []string
	rows, inTable := 0, false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, "| ") {
			inTable = strings.HasPrefix(line, "|---")
			continue
		}
		if !inTable {
			continue // the table's heading
		}
		rows++
		cells := strings.Split(strings.TrimSuffix(line[2:], " |"), " | ")
		if len(cells) != 3 || cells[1] == "" {
			t.Errorf("not a field, an effect and a test: %s", line)
			continue
		}
		if err := p.checkTests(cells[2]); err != nil {
			t.Errorf("%s: %v", cells[0], err)
		}
		for _, m := range fieldName.FindAllStringSubmatch(cells[0], -1) {
			fields = append(fields, m[1])
		}
	}
	for _, f := range specFields {
		if !slices.Contains(fields, f) {
			t.Errorf("the field %s has no row", f)
		}
	}
	if slices.Sort(fields); len(slices.Compact(slices.Clone(fields))) != len(fields) {
		t.Errorf("a field has two rows: %q", fields)
	}
	if rows < 30 {
		t.Errorf("only %d rows were found", rows)
	}
}
