// Importcheck fails where a package imports what .depguard.json forbids. It is
// depguard as a program, run by `make lint` in the repository's top directory;
// ${root} in the rules stands for it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/OpenPeeDeeP/depguard/v2"
	"golang.org/x/tools/go/analysis/singlechecker"
)

const rules = ".depguard.json"

func main() {
	b, err := os.ReadFile(rules)
	if err != nil {
		fatal(err)
	}
	root, err := os.Getwd()
	if err != nil {
		fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte("${root}"), []byte(root))
	var settings depguard.LinterSettings
	if err := json.Unmarshal(b, &settings); err != nil {
		fatal(fmt.Errorf("%s: %w", rules, err))
	}
	analyzer, err := depguard.NewAnalyzer(&settings)
	if err != nil {
		fatal(fmt.Errorf("%s: %w", rules, err))
	}
	singlechecker.Main(analyzer)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "importcheck:", err)
	os.Exit(1)
}
