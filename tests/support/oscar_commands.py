"""The commands that Oscar's and Oscar-ReptileDistil's READMEs give, word for word."""

from __future__ import annotations

QUESTIONS = "--img_feature_dim 2054 --img_feature_type faster_r-cnn --model_type bert --do_lower_case"
VQA = f"{QUESTIONS} --max_img_seq_length 50 --data_label_type mask --data_dir datasets/vqa/2k --task_name vqa_text"
VQA += " --max_seq_length 128 --per_gpu_eval_batch_size 32 --label_file datasets/vqa/cache/trainval_ans2label.pkl"
VQA += " --classifier linear --cls_hidden_scale 3"
GQA = f"{QUESTIONS} --max_img_seq_length 45 --train_data_type all --eval_data_type bal --test_data_type all"
GQA += " --task_name gqa --max_seq_length 165 --per_gpu_eval_batch_size 48 --classifier linear --cls_hidden_scale 3"
NLVR = f"{QUESTIONS} --max_img_seq_length 40 --data_dir datasets/nlvr2/ft_corpus --eval_data_type all"
NLVR += " --test_data_type all --task_name nlvr --max_seq_length 55 --per_gpu_eval_batch_size 72 --classifier mlp"
NLVR += " --cls_hidden_scale 3 --num_choice 2 --use_pair --use_label_seq"
TUNED = "--do_train --save_epoch 1 --seed 88 --drop_out 0.3 --weight_decay 0.05"
BASE = "pretrained_models/base-vg-labels/ep_107_1192087"
START = f"--model_name_or_path {BASE}"
GQA_FILES = "--data_dir datasets/GQA/0.4true --label_file datasets/GQA/questions1.2/trainval_testdev_all_ans2label.pkl"
GQA_TEST = "--data_dir datasets/GQA --label_file datasets/GQA/0.4true/trainval_testdev_all_ans2label.pkl"
IR = "--do_train --do_lower_case --evaluate_during_training --num_captions_per_img_val 20"
IR += " --eval_caption_index_file minival_caption_indexs_top20.pt --per_gpu_train_batch_size 32"
IR += " --per_gpu_eval_batch_size 32 --num_train_epochs 30 --weight_decay 0.05 --save_steps 5000 --add_od_labels"
IR += " --od_label_type vg --max_seq_length 70"
IR_TEST = "--do_test --do_eval --test_split test --num_captions_per_img_val 5 --cross_image_eval"
IR_TEST += " --per_gpu_eval_batch_size 32 --eval_model_dir model/coco_ir/student"


def taught(task: str, rate: str, base: str = BASE) -> str:
    """The flags of a student and its teacher."""
    rates = f"--teacher_learning_rate {rate} --student_learning_rate {rate}"
    models = f"--teacher_model model/{task}/teacher --student_model {base}"
    return f"{models} --alpha 0.5 --temperature 5.0 --num_hidden_layers 6 {rates} --strategy skip"


RATES = {
    "vqa": "--num_train_epochs 25 --per_gpu_train_batch_size 32 --warmup_steps 0 --loss_type bce",
    "gqa": "--num_train_epochs 5 --per_gpu_train_batch_size 48 --warmup_steps 0 --loss_type ce",
    "nlvr": "--num_train_epochs 20 --per_gpu_train_batch_size 72 --warmup_steps 10000 --loss_type ce",
}
COMMANDS = {
    "vqa": f"run_vqa.py {VQA} {TUNED} {RATES['vqa']} {START} --learning_rate 5e-5 --output_dir model/vqa/teacher",
    "gqa": f"run_gqa.py {GQA} {GQA_FILES} {TUNED} {RATES['gqa']} {START} --learning_rate 5e-5"
    " --output_dir model/gqa/teacher",
    "nlvr": f"run_nlvr.py {NLVR} {TUNED} {RATES['nlvr']} {START} --learning_rate 3e-5 --output_dir model/nlvr2/teacher",
    "ir": f"run_retrieval.py --model_name_or_path pretrained_models/base-vg-labels/ep_67_588997 {IR}"
    " --learning_rate 2e-5 --output_dir model/coco_ir/teacher",
    "vqa_taught": f"run_vqa_with_mkd_and_reptile.py {VQA} {TUNED} {RATES['vqa']} {taught('vqa', '5e-5')}"
    " --output_dir model/vqa/student",
    "gqa_taught": f"run_gqa_with_mkd_and_reptile.py {GQA} {GQA_FILES} {TUNED} {RATES['gqa']} {taught('gqa', '5e-5')}"
    " --output_dir model/gqa/student",
    "nlvr_taught": f"run_nlvr_with_mkd_and_reptile.py {NLVR} {TUNED} {RATES['nlvr']} {taught('nlvr2', '3e-5')}"
    " --output_dir model/nlvr2/student",
    "ir_taught": f"run_retrieval_with_mkd_and_reptile.py {IR} --output_dir model/coco_ir/student "
    + taught("coco_ir", "2e-5", "pretrained_models/base-vg-labels/ep_67_588997"),
    "vqa_test": f"run_vqa.py {VQA} --do_test --model_name_or_path model/vqa/student --output_dir model/vqa/student"
    " --label2ans_file datasets/vqa/cache/trainval_label2ans.pkl",
    "gqa_test": f"run_gqa.py {GQA} {GQA_TEST} --do_test --model_name_or_path model/gqa/student"
    " --output_dir model/gqa/student --label2ans_file datasets/GQA/0.4true/trainval_testdev_all_label2ans.pkl",
    "nlvr_test": f"run_nlvr.py {NLVR} --do_test --model_name_or_path model/nlvr2/student"
    " --output_dir model/nlvr2/student",
    "ir_1k": f"run_retrieval.py {IR_TEST} --eval_img_keys_file test_img_keys_1k.tsv",
    "ir_5k": f"run_retrieval.py {IR_TEST} --eval_img_keys_file test_img_keys.tsv",
    "caption": "run_captioning.py --model_name_or_path pretrained_models/base-vg-labels/ep_67_588997 --do_train"
    " --do_lower_case --evaluate_during_training --add_od_labels --learning_rate 0.00003"
    " --per_gpu_train_batch_size 64 --num_train_epochs 30 --save_steps 5000 --output_dir output/",
    "caption_scst": "run_captioning.py --model_name_or_path your_checkpoint_from_cross_entropy_training --do_train"
    " --scst --do_lower_case --evaluate_during_training --add_od_labels --learning_rate 0.000005"
    " --per_gpu_train_batch_size 16 --num_train_epochs 5 --save_steps 2000 --output_dir output/",
    "caption_test": "run_captioning.py --do_test --do_eval --test_yaml test.yaml --per_gpu_eval_batch_size 64"
    " --num_beams 5 --max_gen_length 20 --eval_model_dir your_model_for_evaluation",
}


def written(name: str) -> str:
    """A command as the README prints it: a flag a line, each line continued."""
    return "python oscar/" + COMMANDS[name].replace(" --", " \\\n--") + "\n"
