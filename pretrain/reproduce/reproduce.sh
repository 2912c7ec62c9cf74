#!/usr/bin/env bash
# Make the figures of pretrain/RESULTS.md again, from a folder with one folder of images for every class:
#   bash pretrain/reproduce/reproduce.sh DATA OUT
# The images become a dataset with a split of its own; training sees all of it but the test part, and no label. Then
# "main" trains once and long, and "table" once for each row and seed of PerA's parts, all evaluated on the test part.
#
# Everything goes on where it was: kill it, start it again with the same words. PARTS="main table" chooses what is made,
# ROWS and SEEDS which rows of the table (names of pretrain/reproduce/rows/*.yaml); ARGS are more words for each
# training. RANKS: processes of a training on the CPU; for so small a model one for each core is better than
# a thread for each. To see in a few minutes that all of it runs: ARGS="--max_steps 2" in a folder of its own.
set -euo pipefail

data=${1:?DATA: folder with one folder of images for every class} out=${2:?OUT: folder for everything that is made}
configs=$(dirname "$0")
parts=${PARTS:-main table}
read -ra arguments <<< "${ARGS:-}"
rows=${ROWS:-default independent teacher_all teacher_third no_pixel koleo_on_head clean_target join_input dense pixels}
# Wrong names are told now, and not after the hours that what stands before them takes.
for part in $parts; do
    case $part in
    main | table) ;;
    *)
        echo "reproduce: PARTS has $part: choose from main, table" >&2
        exit 2
        ;;
    esac
done
for row in $rows; do
    if [ ! -e "$configs/rows/$row.yaml" ]; then
        known=("$configs"/rows/*.yaml)
        known=("${known[@]##*/}")
        echo "reproduce: ROWS has $row: choose from ${known[*]%.yaml}" >&2
        exit 2
    fi
done
# What the first comparison is about has two seeds.
pairs=()
for row in $rows; do
    case $row in default | independent) seeds=${SEEDS:-0 1} ;; *) seeds=${SEEDS:-0} ;; esac
    for seed in $seeds; do pairs+=("$row:$seed"); done
done

step() {
    echo "+ python -m $*"
    "${PYTHON:-python}" -m "$@"
}

train() {
    echo "+ python -m pretrain $* ${arguments[*]}"
    RANKS_PER_NODE=${RANKS:-1} PYTHON=${PYTHON:-python} bash "$configs/../launch/torchrun.sh" "$@" "${arguments[@]}"
}

# PART MODEL…: compare all with the first one and with the floors.
evaluate() {
    step eval --models "${@:2}" --baseline "$2" --data "chips=$out/dataset" --protocols knn linear --out "$out/$1"
}

step ingest --scenes "$data" --out "$out/dataset" --config "$configs/../../ingest/configs/chips.yaml" \
    --val_share 0.1 --test_share 0.2
step shards select "$out/dataset" --where "split != 'test'" --out "$out/train"

for part in $parts; do
    case $part in
    main)
        train --data "$out/train" --run "$out/runs/main" --config "$configs/main.yaml"
        evaluate main "$out/runs/main@all"
        ;;
    table)
        models=()
        for pair in "${pairs[@]}"; do
            row=${pair%:*} seed=${pair#*:}
            train --data "$out/train" --run "$out/runs/$row-$seed" --config "$configs/table.yaml" \
                --config "$configs/rows/$row.yaml" --seed "$seed"
            models+=("$out/runs/$row-$seed")
        done
        evaluate table "${models[@]}"
        ;;
    esac
done
for part in $parts; do echo "report: $out/$part/report.html"; done
