package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRules runs the check with the project's own rules on a small tree of the same shape.
func TestRules(t *testing.T) {
	program := filepath.Join(t.TempDir(), "importcheck")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	rulesText, err := os.ReadFile("../../../" + rules)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, source string
		want         string // in the output; empty if it may be so
	}{
		"downwards":            {"fs/f.go", "package fs\n\nimport _ \"banger/vmm\"\n", ""},
		"sql in store":         {"vmm/store/s.go", "package store\n\nimport _ \"database/sql\"\n", ""},
		"driver and agent":     {"vmm/qemu/q.go", "package qemu\n\nimport _ \"banger/vmm/guest\"\n", ""},
		"upwards":              {"vmm/v.go", "package vmm\n\nimport _ \"banger/collector\"\n", "imports go one way"},
		"upwards from below":   {"vmm/guest/v.go", "package guest\n\nimport _ \"banger/collector\"\n", "imports go one way"},
		"part of vmm in fs":    {"fs/f.go", "package fs\n\nimport _ \"banger/vmm/guest\"\n", "only by its interfaces"},
		"part in another part": {"vmm/store/s.go", "package store\n\nimport _ \"banger/vmm/guest\"\n", "do not import each other"},
		"sub-package in vmm":   {"vmm/v.go", "package vmm\n\nimport _ \"banger/vmm/guest\"\n", "none of its sub-packages"},
		"room of image":        {"vmm/image/i.go", "package image\n\nimport _ \"banger/vmm/image/boot\"\n", ""},
		"image in its room":    {"vmm/image/boot/b.go", "package boot\n\nimport _ \"banger/vmm/image\"\n", "leaves only"},
		"agent in image":       {"vmm/image/i.go", "package image\n\nimport _ \"banger/vmm/guest\"\n", "do not import each other"},
		"room elsewhere":       {"cmd/bangerd/m.go", "package main\n\nimport _ \"banger/vmm/image/boot\"\n", "only vmm/image imports"},
		"sql elsewhere":        {"collector/c.go", "package collector\n\nimport _ \"database/sql\"\n", "vmm/store only"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{
				"go.mod":                "module banger\n\ngo 1.26.0\n",
				rules:                   string(rulesText),
				"vmm/p.go":              "package vmm\n",
				"vmm/guest/p.go":        "package guest\n",
				"collector/p.go":        "package collector\n",
				"vmm/store/doc.go":      "package store\n",
				"vmm/image/doc.go":      "package image\n",
				"vmm/image/boot/doc.go": "package boot\n",
			}
			files[c.file] = c.source
			for name, text := range files {
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(program, "./...")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PWD="+dir, "GOFLAGS=-mod=mod")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if (err != nil) != (c.want != "") || !strings.Contains(string(out), c.want) {
				t.Errorf("error %v, output %q, want %q", err, out, c.want)
			}
		})
	}
}
