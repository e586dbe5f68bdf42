#!/bin/sh
# Trains on the machines of a hostfile, one rank each:   sh train.sh hostfile --config run.yaml --resume auto
# Every machine has lora-c[mpi] in the same place, and sees the model, the data and the output folder by the same paths. With other
# ranks than one a machine: --map-by ppr:2:node. LORA_C and MPIRUN name the programs, where they are not on the PATH.
set -eu
hosts=$1
shift
exec "${MPIRUN:-mpirun}" --hostfile "$hosts" --map-by ppr:1:node --bind-to none "${LORA_C:-lora-c}" train "$@"
