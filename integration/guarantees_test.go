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
	anyTest   = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*|\b[SL]/\w+`)
	fileName  = regexp.MustCompile(`^\w+$`)
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
			if ok, err := p.checkScript(name); err != nil || !ok && !p.has("", name) {
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
		if ok, err := p.checkScript(name); err != nil {
			return err
		} else if ok {
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

// checkScript reports whether the name is that of a script, S/name, or of a step of the lab, L/name.
// The error says that there is none.
func (p *provenBy) checkScript(name string) (bool, error) {
	kind, base, _ := strings.Cut(name, "/")
	var pattern string
	switch kind {
	case "S":
		pattern = "integration/testdata/" + base + ".txtar"
	case "L":
		pattern = "integration/lab/steps/[0-9][0-9]-" + base + ".sh"
	default:
		return false, nil
	}
	found, err := filepath.Glob(filepath.Join(p.root, pattern))
	if err == nil && (!fileName.MatchString(base) || len(found) != 1) {
		err = fmt.Errorf("%d files are %s, not one", len(found), pattern)
	}
	return true, err
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
		{"| it works | L/install; S/tour; integration TestCrash |", true},
		{"| it works | L/no_such_step |", false},
		{"| it works | L/instal? |", false},
		{"| it works | L/../../testdata/tour |", false},
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
		"L/install": true, "L/no_such_step": false,
	} {
		if _, errs := p.checkDocument(fmt.Sprintf(other, name)); (errs == nil) != ok {
			t.Errorf("%s: %v", name, errs)
		}
	}
}
