//go:build tools

// Package tools keeps the linters that the Makefile runs in go.mod, so that their versions are pinned.
package tools

import (
	_ "honnef.co/go/tools/cmd/staticcheck"
)
