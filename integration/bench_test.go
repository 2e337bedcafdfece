package integration

import (
	"cmp"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	report = flag.Bool("report", false, "run TestReport, which prints docs/performance.md's table")
	only   = flag.String("report.only", "", "the parts of TestReport to run, separated by commas")
	before = flag.String("report.against", "",
		"compare with the banger of this source tree, which has its image (make image)")
	repeats = flag.Int("report.repeats", 2, "with -report.against: runs of each part and tree")
)

// parts are measured one after the other. Each has daemons of its own.
var parts = []struct {
	name    string
	measure func(*bench)
}{
	{"reads", benchReads}, {"once", benchOnce}, {"commits", benchCommits},
	{"scale1000", benchThousand}, {"scale10000", benchTenThousand}, {"hung", benchHung},
	{"boot", benchBoot}, {"quiet", benchQuiet}, {"exec", benchExec}, {"files", benchFiles},
	{"libvirt", benchLibvirt}, {"tasks", benchTasks},
}

// bench is one run of a part.
type bench struct {
	*testing.T
	print func(row) // called for each row as soon as it is measured
}

// row is one line of the report. The bare figure has no unit where there is nothing to compare.
type row struct {
	what       string
	ours, bare figure
	aim        string
}

// figure is a measured value in seconds ("s"), bytes ("B"), per cent of a core ("%"), or in the
// unit that it is printed with.
type figure struct {
	value float64
	unit  string
}

// nothing is the bare figure of a row that compares nothing.
var nothing figure

func seconds(d time.Duration) figure { return figure{d.Seconds(), "s"} }

// coreShare returns how much of a core was busy for a time in a window.
func coreShare(busy, window time.Duration) figure {
	return figure{100 * busy.Seconds() / window.Seconds(), "%"}
}

// rate returns how many of n, in a unit that ends in /s, fit into a second.
func rate(n float64, unit string, d time.Duration) figure { return figure{n / d.Seconds(), unit} }

func (f figure) String() string {
	switch f.unit {
	case "":
		return ""
	case "s":
		d := time.Duration(f.value * float64(time.Second))
		unit := time.Nanosecond
		for unit*10000 <= d { // four digits
			unit *= 10
		}
		return d.Round(unit).String()
	case "B":
		return fmt.Sprintf("%.0f MiB", f.value/(1<<20))
	case "%":
		return fmt.Sprintf("%.2f %% of a core", f.value)
	case "MB/s":
		return fmt.Sprintf("%.1f MB/s", f.value)
	}
	return fmt.Sprintf("%.0f %s", f.value, f.unit)
}

// over returns the ratio of two figures, empty where there is only one.
func (f figure) over(other figure) string {
	if f.unit == "" || other.unit == "" || other.value == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", f.value/other.value)
}

func (r row) cells() []string {
	return []string{r.what, r.ours.String(), r.bare.String(), r.ours.over(r.bare), r.aim}
}

// row adds a row to the report.
func (b *bench) row(what string, ours, bare figure, aim string) {
	b.print(row{what, ours, bare, aim})
}

// times adds a row that compares two durations.
func (b *bench) times(what string, ours, bare time.Duration, aim string) {
	b.row(what, seconds(ours), seconds(bare), aim)
}

// markdown renders one line of a table.
func markdown(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |" }

// table prints each line at once and all of them again at the end, without what tests print
// between them.
type table struct{ lines []string }

func newTable(head ...string) *table {
	return &table{[]string{markdown(head...), "|" + strings.Repeat("---|", len(head))}}
}

func (o *table) add(cells ...string) {
	o.lines = append(o.lines, markdown(cells...))
	fmt.Println(o.lines[len(o.lines)-1])
}

// TestReport measures banger beside the bare thing, in one run on this machine, and prints ratios.
// A part that fails costs its own rows only.
func TestReport(t *testing.T) {
	if !*report {
		t.Skip("a measurement: make bench")
	}
	names := map[string]bool{}
	for _, p := range parts {
		names[p.name] = true
	}
	chosen := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	for _, name := range chosen {
		if !names[name] {
			t.Fatalf("-report.only: there is no part %q", name)
		}
	}
	out, measure := newTable("what", "banger", "bare", "ratio", "aim"), measureOnce
	if *before != "" {
		out = newTable("what", "before", "after", "after/before", "of the ratios to bare")
		measure = measureBoth(t)
	}
	for _, p := range parts {
		if len(chosen) > 0 && !slices.Contains(chosen, p.name) {
			continue
		}
		if !t.Run(p.name, func(t *testing.T) { measure(t, out, p.measure) }) {
			out.add("part "+p.name, "FAILED; its error is above")
		}
	}
	fmt.Printf("\n%s\n\n", strings.Join(out.lines, "\n"))
}

// measureOnce measures a part and prints each row as soon as it is measured.
func measureOnce(t *testing.T, out *table, measure func(*bench)) {
	measure(&bench{T: t, print: func(r row) { out.add(r.cells()...) }})
}

// measureBoth builds the programs of the other tree. It returns a function that measures a part
// with both, in turns, and prints the medians of the rows that both have.
func measureBoth(t *testing.T) func(*testing.T, *table, func(*bench)) {
	if *profiles != "" {
		t.Fatal("-report.profile and -report.against exclude each other")
	}
	dir, err := filepath.Abs(*before)
	must(t, err)
	type tree struct{ name, module, bin string }
	old, own := tree{"before", dir, t.TempDir()}, tree{"after", module, bin}
	must(t, openUp(old.bin))
	must(t, buildPrograms(old.module, old.bin))
	return func(t *testing.T, out *table, measure func(*bench)) {
		t.Cleanup(func() { module, bin = own.module, own.bin })
		var names []string // of all rows, in the order of their first measurement
		measured := map[string]map[string][]row{}
		for n := range *repeats {
			turn := []tree{old, own}
			if n%2 == 1 { // A B B A: a drift of the machine counts for both
				slices.Reverse(turn)
			}
			for _, tree := range turn {
				module, bin = tree.module, tree.bin
				note := func(r row) {
					fmt.Println(tree.name, markdown(r.cells()...))
					if measured[r.what] == nil {
						names = append(names, r.what)
						measured[r.what] = map[string][]row{}
					}
					measured[r.what][tree.name] = append(measured[r.what][tree.name], r)
				}
				t.Run(tree.name, func(t *testing.T) { measure(&bench{T: t, print: note}) })
			}
		}
		for _, what := range names {
			a, b := measured[what]["before"], measured[what]["after"]
			if len(a) > 0 && len(b) > 0 {
				x, y := medianRow(a), medianRow(b)
				out.add(what, x.ours.String(), y.ours.String(), y.ours.over(x.ours), y.overBare(x))
			}
		}
	}
}

// overBare compares two ratios to the bare thing. A load of the machine is in both sides of each.
func (r row) overBare(other row) string {
	if r.bare.unit == "" || other.bare.unit == "" {
		return ""
	}
	ratio := func(r row) figure { return figure{r.ours.value / r.bare.value, "x"} }
	return ratio(r).over(ratio(other))
}

func medianRow(all []row) row {
	var ours, bare []figure
	for _, r := range all {
		ours, bare = append(ours, r.ours), append(bare, r.bare)
	}
	return row{ours: median(ours), bare: median(bare)}
}

// median returns the middle of an odd number of figures, the mean of the middle two of an even one.
func median(all []figure) figure {
	slices.SortFunc(all, func(x, y figure) int { return cmp.Compare(x.value, y.value) })
	low, high := all[(len(all)-1)/2], all[len(all)/2]
	return figure{(low.value + high.value) / 2, low.unit}
}

// rounds is how often each side is measured, one after the other; the median counts.
const rounds = 5

// compare measures both sides in turns and returns their medians.
func compare(ours, bare func() time.Duration) (time.Duration, time.Duration) {
	return compareRounds(rounds, ours, bare)
}

func compareRounds(rounds int, ours, bare func() time.Duration) (time.Duration, time.Duration) {
	var a, b []time.Duration
	for range rounds {
		a, b = append(a, ours()), append(b, bare())
	}
	return medianTime(a), medianTime(b)
}

func medianTime(all []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

// took returns the time of one call.
func took(do func()) time.Duration {
	begun := time.Now()
	do()
	return time.Since(begun)
}

// each calls do n times, from so many goroutines, and returns the time of one call.
func each(workers, n int, do func()) time.Duration {
	var wg sync.WaitGroup
	begun := time.Now()
	for range workers {
		wg.Go(func() {
			for range n / workers {
				do()
			}
		})
	}
	wg.Wait()
	return time.Since(begun) / time.Duration(n)
}
