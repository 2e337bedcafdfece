package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
	testName  = regexp.MustCompile(`^(?:([\w/-]+) )?((?:Test|Fuzz)[A-Z]\w*)$`)
	anyTest   = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*|\bS/\w+`)
	testNote  = regexp.MustCompile(` *\([^)]*\)`)
	testSplit = regexp.MustCompile(`[,;] *| and `)
)

// provenBy holds the tests that a document may name.
type provenBy struct {
	root     string
	packages map[string][]string // names of the tests by package
}

// newProvenBy finds the tests below the root of the repository.
func newProvenBy(t *testing.T, root string) *provenBy {
	p := &provenBy{root: root, packages: make(map[string][]string)}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		dir, _ := filepath.Rel(root, filepath.Dir(path))
		for _, m := range testFunc.FindAllSubmatch(source, -1) {
			p.packages[dir] = append(p.packages[dir], string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// check returns what is wrong with the row of a document's table, nil for nothing.
func (p *provenBy) check(cells []string, promises bool) error {
	if promises {
		if len(cells) != 2 || cells[0] == "" {
			return fmt.Errorf("%d cells, not a promise and its tests", len(cells))
		}
		return p.checkTests(cells[1])
	}
	for _, cell := range cells {
		for _, name := range anyTest.FindAllString(cell, -1) {
			if script, ok := strings.CutPrefix(name, "S/"); ok && !p.hasScript(script) ||
				!ok && !p.has("", name) {
				return fmt.Errorf("%s does not exist", name)
			}
		}
	}
	return nil
}

// checkTests checks a list of tests. A package holds until the next one is named.
func (p *provenBy) checkTests(list string) error {
	in := ""
	for name := range slices.Values(testSplit.Split(testNote.ReplaceAllString(list, ""), -1)) {
		if script, ok := strings.CutPrefix(name, "S/"); ok {
			if !p.hasScript(script) {
				return fmt.Errorf("there is no script %q", script)
			}
			continue
		}
		m := testName.FindStringSubmatch(name)
		if m == nil {
			return fmt.Errorf("%q is no test", name)
		}
		if m[1] != "" {
			in = m[1]
		}
		if in == "" || !p.has(in, m[2]) {
			return fmt.Errorf("package %q has no %s", in, m[2])
		}
	}
	return nil
}

func (p *provenBy) hasScript(name string) bool {
	_, err := os.Stat(filepath.Join(p.root, "integration/testdata", name+".txtar"))
	return err == nil
}

// has reports whether a package, or any for the empty name, has the test.
func (p *provenBy) has(in, test string) bool {
	if in != "" {
		return slices.Contains(p.packages[in], test)
	}
	for _, tests := range p.packages {
		if slices.Contains(tests, test) {
			return true
		}
	}
	return false
}

// checkDocument returns how many promises a document has, and what is wrong in it.
func (p *provenBy) checkDocument(text string) (promises int, errs []error) {
	inTable, ofPromises := false, false
	for i, line := range strings.Split(text, "\n") {
		begins := !inTable
		inTable = strings.HasPrefix(line, "|")
		if !inTable || strings.HasPrefix(line, "|---") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(line[min(len(line), 2):], " |"), " | ")
		if begins {
			ofPromises = cells[0] == "promise"
			continue
		}
		if ofPromises {
			promises++
		}
		if err := p.check(cells, ofPromises); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %q: %w", i+1, cells[0], err))
		}
	}
	return promises, errs
}

// TestGuarantees expects that each promise of docs/guarantees.md names tests that exist.
func TestGuarantees(t *testing.T) {
	p := newProvenBy(t, "..")
	text, err := os.ReadFile("../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	promises, errs := p.checkDocument(string(text))
	for _, err := range errs {
		t.Error(err)
	}
	if promises < 100 {
		t.Errorf("only %d promises were found: are the tables' headings `promise | test`?", promises)
	}
}

// TestGuaranteesAreChecked expects that TestGuarantees refuses what proves nothing.
func TestGuaranteesAreChecked(t *testing.T) {
	p := newProvenBy(t, "..")
	for _, c := range []struct {
		row string
		ok  bool
	}{
		{"| it works | S/tour |", true},
		{"| it works | integration TestCrash, TestCancel; fs TestTable (as root) |", true},
		{"| it works |  |", false},
		{"| it works | |", false},
		{"| it works |", false},
		{"| it works | everything |", false},
		{"| it works | S/no_such_script |", false},
		{"| it works | TestCrash |", false},
		{"| it works | fs TestCrash |", false},
		{"| it works | fs TestTable, TestCrash |", false},
		{"| it works | integration TestNothing |", false},
		{"| it works | S/tour, by hand |", false},
	} {
		n, errs := p.checkDocument("| promise | test |\n|---|---|\n" + c.row + "\n")
		if n != 1 || (errs == nil) != c.ok {
			t.Errorf("%s: %d promises, %v", c.row, n, errs)
		}
	}
	other := "| | banger | jailer |\n|---|---|---|\n| seccomp | yes (%s) | yes |\n"
	for name, ok := range map[string]bool{
		"S/tour": true, "TestCrash": true, "S/no_such_script": false, "TestNothing": false,
	} {
		if _, errs := p.checkDocument(fmt.Sprintf(other, name)); (errs == nil) != ok {
			t.Errorf("%s: %v", name, errs)
		}
	}
}
