package yocto

import (
	"bufio"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/test/need"
)

// regenerate is what to do when the lists are out of date.
const regenerate = "run: make yocto-modules"

func layer(path ...string) string {
	return filepath.Join(append([]string{need.Top(), "meta-kapernikov"}, path...)...)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// recipes are the recipes of the layer, at least as many as there were once.
func recipes(t *testing.T) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(layer(), func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); ext == ".bb" || ext == ".bbappend" || ext == ".inc" {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 10 {
		t.Fatalf("found %d recipes", len(list))
	}
	return list
}

var moduleEntry = regexp.MustCompile(`gomod://(\S+?);version=([^;\s]+)(;mod=1)?;sha256sum=([0-9a-f]{64})`)

// listed are the entries of the recipe's list.
func listed(t *testing.T) []Module {
	t.Helper()
	var list []Module
	for _, m := range moduleEntry.FindAllStringSubmatch(read(t, layer("recipes-core/osctl", ModulesFile)), -1) {
		list = append(list, Module{m[1], m[2], m[3] != "", m[4]})
	}
	if len(list) == 0 {
		t.Fatal("the recipe lists no modules")
	}
	return list
}

// TestModuleList holds the recipe's list to go.mod: what osctl is linked from, no
// more and no less.
func TestModuleList(t *testing.T) {
	packages, err := Packages(t.Context(), need.Top())
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, p := range packages {
		if p.Module != nil && !p.Module.Main {
			want = append(want, p.Module.Path+" "+p.Module.Version)
		}
	}
	slices.Sort(want)
	for _, m := range listed(t) {
		if !m.OnlyMod {
			got = append(got, m.Path+" "+m.Version)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("the modules of the Yocto recipe are not those of go.mod (-go.mod +recipe); %s\n%s", regenerate, diff)
	}
}

// TestModuleSums holds the checksums to go.sum. A go.mod is judged by its sum alone;
// a zip file, of which go.sum has the sum of its contents, where the module cache of
// this machine has it.
func TestModuleSums(t *testing.T) {
	sums := goSum(t)
	env, err := goEnv(t.Context(), need.Top(), "GOMODCACHE")
	if err != nil {
		t.Fatal(err)
	}
	zips := 0
	for _, m := range listed(t) {
		name := m.Path + " " + m.Version
		if m.OnlyMod {
			h := sha256.Sum256([]byte(m.SHA256 + "  go.mod\n"))
			if want := "h1:" + base64.StdEncoding.EncodeToString(h[:]); sums[name+"/go.mod"] != want {
				t.Errorf("go.mod of %s: go.sum has another checksum than the Yocto recipe; %s", name, regenerate)
			}
			continue
		}
		if sums[name] == "" {
			t.Errorf("%s is not in go.sum; %s", name, regenerate)
		}
		data, err := os.ReadFile(filepath.Join(env[0], "cache/download", escape(m.Path), "@v", escape(m.Version)+".zip"))
		if err != nil {
			continue
		}
		zips++
		if h := sha256.Sum256(data); hex.EncodeToString(h[:]) != m.SHA256 {
			t.Errorf("%s: the module cache has another zip file than the Yocto recipe; %s", name, regenerate)
		}
	}
	t.Logf("%d zip files compared", zips)
}

// goSum is go.sum, by "path version" and "path version/go.mod".
func goSum(t *testing.T) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for line := range strings.Lines(read(t, filepath.Join(need.Top(), "go.sum"))) {
		if fields := strings.Fields(line); len(fields) == 3 {
			sums[fields[0]+" "+fields[1]] = fields[2]
		}
	}
	return sums
}

var capital = regexp.MustCompile(`[A-Z]`)

func escape(s string) string {
	return capital.ReplaceAllStringFunc(s, func(c string) string { return "!" + strings.ToLower(c) })
}

func TestUnescape(t *testing.T) {
	if got := unescape("github.com/!burnt!sushi/toml"); got != "github.com/BurntSushi/toml" || escape(got) != "github.com/!burnt!sushi/toml" {
		t.Errorf("got %s, and back %s", got, escape(got))
	}
}

// TestLicenses holds the list of licences to the list of modules, and the summary to
// the list.
func TestLicenses(t *testing.T) {
	text := read(t, layer("recipes-core/osctl", LicensesFile))
	have := map[string]bool{}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`file://pkg/mod/(\S+?@[^/]+)/\S+;md5=[0-9a-f]{32};spdx=(\S+)`).FindAllStringSubmatch(text, -1) {
		have[m[1]] = true
		names[m[2]] = true
	}
	for _, m := range listed(t) {
		if name := escape(m.Path) + "@" + escape(m.Version); !m.OnlyMod && !have[name] {
			t.Errorf("%s has no licence file in the list; %s", name, regenerate)
		}
	}
	_, summary, _ := strings.Cut(text, `LICENSE += "& `)
	summary, _, _ = strings.Cut(summary, `"`)
	for name := range names {
		if name == Unknown || !slices.Contains(strings.Split(summary, " & "), name) {
			t.Errorf("LICENSE is %q, without %s; %s", summary, name, regenerate)
		}
	}
}

func TestIdentify(t *testing.T) {
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0, January 2004":                                       "Apache-2.0",
		"Permission is hereby granted, free of charge, to any person\nobtaining a copy":      "MIT",
		"Redistribution and use in source and binary forms ... endorse or promote products":  "BSD-3-Clause",
		"Redistribution and use in source and binary forms, with or without modification":    "BSD-2-Clause",
		"Mozilla Public License, version 2.0":                                                "MPL-2.0",
		"Permission to use, copy, modify, and distribute this software for any purpose with": "ISC",
		"This is free and unencumbered software released into the public domain.":            "Unlicense",
		"You may look at this, but do not touch it.":                                         Unknown,
	} {
		if got := identify(text); got != want {
			t.Errorf("identify(%q) = %s, want %s", text, got, want)
		}
	}
}

// TestLicenseChecksums holds LIC_FILES_CHKSUM of our own recipes to the repository's
// licence.
func TestLicenseChecksums(t *testing.T) {
	sum := md5.Sum([]byte(read(t, filepath.Join(need.Top(), "LICENSE"))))
	found := 0
	for _, recipe := range recipes(t) {
		for _, m := range regexp.MustCompile(`file://\S*LICENSE;md5=([0-9a-f]{32})`).FindAllStringSubmatch(read(t, recipe), -1) {
			if filepath.Base(recipe) == LicensesFile {
				continue
			}
			found++
			if m[1] != hex.EncodeToString(sum[:]) {
				t.Errorf("%s: LICENSE has the checksum %x", filepath.Base(recipe), sum)
			}
		}
	}
	if found < 5 {
		t.Errorf("found %d licence checksums", found)
	}
}

// TestDisk holds the disk of the layer to that of osctl install: partitions, their
// order, names, types and fixed sizes.
func TestDisk(t *testing.T) {
	const mib = disk.MiB
	l := disk.DefaultLayout()
	placed, err := l.Place(8 << 30)
	if err != nil {
		t.Fatal(err)
	}
	values := variables(t, "conf/distro/kapernikov.conf", "recipes-core/images/image-kapernikov.bb")
	wks := regexp.MustCompile(`\$\{(\w+)\}`).ReplaceAllStringFunc(read(t, layer("files/wic/kapernikov.wks.in")), func(v string) string {
		return values[v[2:len(v)-1]]
	})
	var got, want []string
	lines := bufio.NewScanner(strings.NewReader(wks))
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "part ") {
			continue
		}
		name, kind, size := option(lines.Text(), "part-name"), option(lines.Text(), "part-type"), option(lines.Text(), "fixed-size")
		if name == disk.LabelData {
			size = "rest"
		}
		got = append(got, fmt.Sprint(name, " ", kind, " ", size))
	}
	for _, p := range placed {
		kind, size := "0FC63DAF-8483-4772-8E79-3D69D8477DE4", fmt.Sprintf("%dM", p.Size/mib)
		switch p.Label {
		case disk.LabelBoot:
			kind = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
		case disk.LabelData:
			size = "rest"
		}
		want = append(want, fmt.Sprint(p.Label, " ", kind, " ", size))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the disk of kapernikov.wks.in is not that of osctl install (-install +wks)\n%s", diff)
	}
}

func option(line, name string) string {
	m := regexp.MustCompile(`--` + name + `[ =](\S+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return m[1]
}

// variables are the plain assignments of some files of the layer.
func variables(t *testing.T, files ...string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, file := range files {
		for _, m := range regexp.MustCompile(`(?m)^(\w+) \?*= "([^"]*)"$`).FindAllStringSubmatch(read(t, layer(file)), -1) {
			values[m[1]] = m[2]
		}
	}
	return values
}

// TestFirstBootState holds the boot state on that disk to the one that osctl install
// writes. The recipe makes it without any tool.
func TestFirstBootState(t *testing.T) {
	want, err := boot.InitialBlock()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`printf '%s\\n' (seq=.*)\n`).FindStringSubmatch(read(t, layer("recipes-bsp/osctl-boot/osctl-boot.bb")))
	if m == nil {
		t.Fatal("osctl-boot.bb makes no boot state")
	}
	got := "# GRUB Environment Block\n" + strings.Join(strings.Fields(m[1]), "\n") + "\n"
	got += strings.Repeat("#", 1024-len(got))
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-osctl install +recipe\n%s", diff)
	}
}

// TestNoWayIn holds the layer to having no login without a key.
func TestNoWayIn(t *testing.T) {
	err := filepath.WalkDir(layer(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		for line := range strings.Lines(read(t, path)) {
			if m := regexp.MustCompile(`debug-tweaks|empty-root-password|allow-empty-password|serial-autologin-root`).FindString(line); m != "" &&
				!strings.Contains(line, "for feature in") && filepath.Ext(path) != ".md" {
				t.Errorf("%s: %s", path, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
